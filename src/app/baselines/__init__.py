"""Simple methods on the same split, to judge a training by."""
