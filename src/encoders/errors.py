"""What can go wrong with a name or a plugin."""

__all__ = ["PluginError", "UnknownEncoderError"]


class UnknownEncoderError(ValueError):
    """No strategy of that name; the message has the nearest name and all known ones."""


class PluginError(ValueError):
    """The strategy that was asked for comes from a plugin that is broken or blocked."""
