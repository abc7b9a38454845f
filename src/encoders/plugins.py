"""Finds plugins and calls their hook; an error of one is recorded and does not affect the others."""

import inspect
import re
from importlib import metadata
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional

import pluggy

from cfg.validation import nearest
from encoders import hookspecs
from encoders.hookspecs import GROUP

__all__ = ["BUILT_IN", "RUN_TIME", "Found", "Offer", "Plugin", "collect", "installed_plugins", "make_offer"]

BUILT_IN = "built-in"
"""The name of the distribution of built-in strategies."""

RUN_TIME = "register_strategy"
"""The name of the distribution of strategies that the running program has registered."""

_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")


class Plugin(NamedTuple):
    """A plugin before it is loaded: its name, its distribution, and how to load it."""

    name: str
    distribution: str
    version: str
    load: Callable[[], Any]

    @property
    def origin(self) -> str:
        """``acme-encoder 0.1.0``."""
        return f"{self.distribution} {self.version}"


class Offer(NamedTuple):
    """What a plugin offers under one name; strategy and config are a class or ``"module:Class"``."""

    name: str
    strategy: Any
    config: Any
    preset: bool
    plugin: Plugin


class Found(NamedTuple):
    """A plugin after its hook was called: what it offers, or why it failed (``blocked`` if it was not loaded)."""

    plugin: Plugin
    offers: List[Offer]
    failure: Optional[str]
    blocked: bool = False


def installed_plugins() -> List[Plugin]:
    """Every entry point of the group in the installed distributions, by distribution and name, each once."""
    found: Dict[tuple, Plugin] = {}
    for distribution in metadata.distributions():
        for entry in distribution.entry_points:
            if entry.group == GROUP:
                name = distribution.metadata["Name"] or "unknown"
                version = distribution.version or "unknown"
                # A checkout that is installed too shows its distribution twice; the first on sys.path counts.
                found.setdefault((name, entry.name), Plugin(entry.name, name, version, entry.load))
    return [found[key] for key in sorted(found)]


def collect(plugins: Iterable[Plugin], blocked: Iterable[str] = ()) -> List[Found]:
    """Load each plugin and call its hook.

    Errors of a plugin do not reach the caller: an import error, a wrong hook signature, a misspelt hook or an exception
    in the hook becomes the `Found.failure` of that plugin, and none of its offers count.
    """
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    return [_try(manager, plugin, set(blocked)) for plugin in plugins]


def _try(manager: pluggy.PluginManager, plugin: Plugin, blocked: set) -> Found:
    if plugin.name in blocked:
        return Found(plugin, [], "it is named in ENCODERS_BLOCK", blocked=True)
    try:
        return Found(plugin, _call(manager, plugin, plugin.load()), None)
    except (Exception, SystemExit) as problem:  # a plugin may raise anything at import, which must not affect others
        return Found(plugin, [], f"{type(problem).__name__}: {problem}")


def _call(manager: pluggy.PluginManager, plugin: Plugin, loaded: Any) -> List[Offer]:
    # pluggy keeps a plugin whose registration failed, so implementations are called one by one and never all together.
    if manager.is_registered(loaded):
        raise pluggy.PluginValidationError(loaded, "the same object is already registered by another entry point")
    manager.register(loaded, name=f"{plugin.distribution}:{plugin.name}")
    hooks = manager.get_hookcallers(loaded) or []
    for hook in hooks:
        if not hook.has_spec():
            hint = nearest(hook.name, ["register_encoders"])
            hint = hint or "the hook is register_encoders"
            raise pluggy.PluginValidationError(loaded, f"unknown hook {hook.name!r}; {hint}")
    offers: List[Offer] = []

    def register(name: str, *, strategy: Any, config: Any, preset: bool = False) -> None:
        offers.append(make_offer(plugin, name, strategy, config, preset))

    for hook in hooks:
        for implementation in hook.get_hookimpls():
            if implementation.plugin is loaded:
                # A hook may take fewer arguments than the specification has.
                implementation.function(*[register for name in implementation.argnames if name == "register"])
    if not offers:
        raise LookupError("it registers no encoder; implement register_encoders with encoders.hookimpl")
    return offers


def make_offer(plugin: Plugin, name: Any, strategy: Any, config: Any, preset: bool) -> Offer:
    """What a plugin offers, checked. Raises ValueError."""
    if not isinstance(name, str) or not _NAME.match(name):
        raise ValueError(f"register: name must be lower case letters, digits and underscores; got {name!r}")
    for label, value in (("strategy", strategy), ("config", config)):
        dotted = isinstance(value, str) and value.count(":") == 1 and all(value.split(":"))
        if not dotted and not inspect.isclass(value):
            raise ValueError(f"register: {label} must be a class or 'package.module:Class'; got {value!r}")
    return Offer(name, strategy, config, bool(preset), plugin)
