"""Simple methods on the same split, with which a training is compared."""
