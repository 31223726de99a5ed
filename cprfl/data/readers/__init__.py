"""Annotations of several formats, each read into one `Manifest`."""
