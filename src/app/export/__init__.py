"""A trained encoder as graphs for other runtimes, each compared with PyTorch."""
