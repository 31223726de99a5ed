"""`cprfl benchmark`: methods on the same images with the same means, in one table."""
