"""Errors that a user of the application can correct: shown as one message, without a traceback."""

from encoders.errors import DataError, RunError, data_error

__all__ = ["DataError", "RunError", "data_error"]
