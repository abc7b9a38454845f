"""What can go wrong with a name, a plugin or somebody's data."""

__all__ = ["InputError", "PluginError", "UnknownEncoderError"]


class UnknownEncoderError(ValueError):
    """No strategy of that name; the message has the nearest name and all known ones."""


class PluginError(ValueError):
    """The strategy that was asked for comes from a plugin that is broken or blocked."""


class InputError(ValueError):
    """Data that do not fit what an encoder was trained on: other columns, missing values, no numbers."""
