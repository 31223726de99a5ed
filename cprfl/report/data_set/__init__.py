"""A data set before anything is encoded: facts, problems, its page."""
