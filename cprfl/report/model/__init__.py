"""A trained model: what it does with each class, and the page that shows it."""
