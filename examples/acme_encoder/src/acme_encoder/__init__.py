"""Gated convolutions as a third-party encoder."""
