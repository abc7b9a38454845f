"""Sequences with targets, in memory or out of it: how they are split, prepared and batched."""
