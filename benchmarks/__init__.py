"""Benchmarks: ours and other implementations in one process, in turn. ``python -m benchmarks --help``."""
