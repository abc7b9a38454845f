"""Differences between Hydra 1.3 and 1.4, and between OmegaConf 2.3 and 2.4."""

import inspect
from typing import Any, Callable, Dict, Optional, Sequence

import hydra
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

__all__ = ["hydra_main_options", "register_resolver", "store_config", "version_base"]

_REPLACES = "replace" in inspect.signature(ConfigStore.store).parameters  # Hydra 1.4
_TRUSTS = "execution_whitelist" in inspect.signature(hydra.main).parameters  # Hydra 1.4


def store_config(name: str, node: Any, group: Optional[str] = None, provider: Optional[str] = None) -> None:
    """Put a config into Hydra's store, replacing one of the same name."""
    more: Dict[str, Any] = {"replace": True} if _REPLACES else {}
    ConfigStore.instance().store(name=name, node=node, group=group, provider=provider, **more)


def register_resolver(name: str, resolver: Callable[..., Any]) -> None:
    """Let a function compute ``${name:...}`` in a config, instead of an earlier one."""
    new = getattr(OmegaConf, "register_resolver", None)  # before OmegaConf 2.4 an older function, without `replace`
    if new is None or "replace" not in inspect.signature(new).parameters:
        new = OmegaConf.register_new_resolver
    new(name, resolver, replace=True)


def version_base() -> Dict[str, Any]:
    """The keyword that asks Hydra 1.3 for its newest behaviour; 1.4 has no other and warns about the keyword."""
    return {} if _TRUSTS else {"version_base": "1.3"}


def hydra_main_options(trusted: Sequence[str]) -> Dict[str, Any]:
    """Keywords of ``hydra.main``.

    Args:
        trusted: dotted names of the classes that Hydra may make from a config; 1.3 makes any.
    """
    return {**version_base(), **({"execution_whitelist": list(trusted)} if _TRUSTS else {})}
