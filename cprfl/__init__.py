"""Training of image classifiers for data in which every image carries several labels and most classes are rare."""

__version__ = "0.2.0"
