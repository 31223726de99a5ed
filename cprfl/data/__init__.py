"""Readers of annotations, the manifest they make, long tails, images and the feature store."""
