"""All that knows MLflow: the store, runs, metrics as they come, the registered model, its UI."""
