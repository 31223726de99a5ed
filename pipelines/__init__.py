"""What runs, and where: the stages of an experiment on Ray, its tracking in MLflow, and the command line."""
