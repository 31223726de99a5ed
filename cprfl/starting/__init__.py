"""`cprfl init`: from a folder or a file of annotations to an experiment that runs."""
