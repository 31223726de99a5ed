"""Sweeps: what a file says of one, how Ray Tune searches it, what a trial does."""
