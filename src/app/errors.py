"""Errors a user of the application can mend: shown as one message, without a traceback."""

from typing import Any

__all__ = ["DataError", "RunError", "data_error"]


class DataError(ValueError):
    """Data that is missing, damaged or not what the config says."""


class RunError(ValueError):
    """A run that cannot start: a missing extra, a folder in use, an unknown job."""


def data_error(who: str, field: str, rule: str, got: Any, hint: str = "") -> DataError:
    """The `DataError` for data that breaks a rule; worded like `myfla.utils.errors.value_error`."""
    from myfla.utils.errors import message  # here, so that showing help never imports torch

    return DataError(message(who, field, rule, got, hint))
