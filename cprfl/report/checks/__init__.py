"""What spoils the results of a model, looked at one by one."""
