"""A trained model behind HTTP: requests are limited, read, batched and answered while the champion may change."""
