"""Retraining: a challenger where something is new, judged against the champion; by hand or on a schedule."""
