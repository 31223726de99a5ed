"""Tables as people have them: dialects, columns and cells, for the readers `csv` and `openimages`."""
