"""The errors for names, plugins, runs and data."""

from typing import Any

__all__ = ["DataError", "InputError", "PluginError", "RunError", "UnknownEncoderError", "data_error"]


class UnknownEncoderError(ValueError):
    """There is no strategy of that name; the message has the nearest name and all known ones."""


class PluginError(ValueError):
    """The requested strategy comes from a plugin that is broken or blocked."""


class InputError(ValueError):
    """Data that do not fit the training data of an encoder: other columns, missing values, no numbers."""


class DataError(ValueError):
    """Training data that are missing, damaged or do not fit the config."""


class RunError(ValueError):
    """A run that cannot start or continue: a missing extra, a folder in use, a training that diverges."""


def data_error(who: str, field: str, rule: str, got: Any, hint: str = "") -> DataError:
    """The `DataError` for data that breaks a rule; worded like `myfla.utils.errors.value_error`."""
    from myfla.utils.errors import message  # here, so that showing help never imports torch

    return DataError(message(who, field, rule, got, hint))
