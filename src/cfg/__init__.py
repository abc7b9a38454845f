"""Typed configs with validation. Importing this package does not import torch."""
