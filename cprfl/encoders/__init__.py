"""Images to grid features, class names to text embeddings."""
