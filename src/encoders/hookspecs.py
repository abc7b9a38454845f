"""The one plugin hook, and the marks that a plugin uses."""

from typing import Callable

import pluggy

__all__ = ["GROUP", "hookimpl", "hookspec", "register_encoders"]

GROUP = "encoders"
"""Name of the plugin manager, of the marks and of the entry-point group."""

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@hookspec
def register_encoders(register: Callable) -> None:
    """Offer encoder strategies; called once per plugin.

    Args:
        register: call it as ``register(name, strategy=..., config=..., preset=False)`` for each strategy.
            ``name`` is the name for users (``encoder=name``): lower case, digits, underscores.
            ``strategy`` is a subclass of `encoders.EncoderStrategy`, ``config`` one of `cfg.encoder.EncoderConfig`
            whose ``name`` defaults to the same name; each is the class, or ``"package.module:Class"``, which is
            imported when it is needed, so that a plugin need not import torch before. ``preset=True`` means that the
            plugin itself puts a YAML file ``encoder/<name>`` on Hydra's search path.

    Example (the plugin's module, named by an entry point of the group ``encoders``)::

        @hookimpl
        def register_encoders(register):
            register("acme", strategy="acme_encoder.strategy:AcmeEncoderStrategy", config=AcmeEncoderConfig)
    """
