"""Caches, and whole models with the official checkpoint names."""

from myfla.models.utils import Cache

__all__ = ["Cache"]
