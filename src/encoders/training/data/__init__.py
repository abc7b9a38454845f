"""Sequences with targets, in memory or in files: splitting, preparing and batching."""
