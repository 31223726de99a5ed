"""All that knows Ray: the connection, what a training takes of it, training and extraction on it, clean-up."""
