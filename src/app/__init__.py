"""The application: ``python -m app``. Importing this package does not import torch."""
