"""One training loop in plain PyTorch, on one process or many."""
