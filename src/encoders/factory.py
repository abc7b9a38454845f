"""Strategies by name: built-ins first, then installed plugins, each isolated from the others."""

import importlib
import inspect
import os
import threading
from typing import TYPE_CHECKING, Any, Dict, Iterable, List, NamedTuple, Optional, Type

from cfg.encoder import EncoderConfig
from cfg.validation import nearest
from encoders.errors import PluginError, UnknownEncoderError
from encoders.plugins import BUILT_IN, RUN_TIME, Found, Offer, Plugin, collect, installed_plugins, make_offer
from encoders.strategies import builtin_plugins

if TYPE_CHECKING:
    from encoders.strategy import EncoderStrategy

__all__ = ["BLOCK_VARIABLE", "BUILT_IN", "Registry", "StrategyInfo", "available_strategies", "default_registry",
           "get_strategy", "register_strategy"]

BLOCK_VARIABLE = "ENCODERS_BLOCK"


class StrategyInfo(NamedTuple):
    """One line of `available_strategies`: the ``name`` of a strategy, its ``plugin``, and the plugin's ``distribution``
    and ``version``.

    ``state`` is ``ready``, ``failed``, ``blocked`` or ``duplicate``; ``detail`` is the reason if it is not ready.
    """

    name: str
    plugin: str
    distribution: str
    version: str
    state: str
    detail: str = ""

    @classmethod
    def of(cls, name: str, plugin: Plugin, state: str, detail: str = "") -> "StrategyInfo":
        """The line for a name of ``plugin``, with its ``state`` and ``detail``."""
        return cls(name, plugin.name, plugin.distribution, plugin.version, state, detail)


class Registry:
    """The strategies by name.

    Args:
        plugins: third-party plugins, tried in this order after the built-ins; the installed ones if not given.
        blocked: plugin names to leave out.

    Example:
        >>> "gated_deltanet" in Registry(plugins=[]).names()
        True
    """

    def __init__(self, plugins: Optional[Iterable[Plugin]] = None, blocked: Iterable[str] = ()) -> None:
        third_party = installed_plugins() if plugins is None else list(plugins)
        self._found: List[Found] = collect([*builtin_plugins(), *third_party], blocked)
        self._offers: Dict[str, Offer] = {}
        self._duplicates: List[Offer] = []
        self._strategies: Dict[str, "EncoderStrategy"] = {}
        self._lock = threading.RLock()
        for found in self._found:
            for offer in found.offers:
                if offer.name in self._offers:
                    self._duplicates.append(offer)  # the first one wins, so a plugin cannot replace a built-in
                else:
                    self._offers[offer.name] = offer

    def register(self, strategy: Type["EncoderStrategy"]) -> None:
        """Add a strategy, or replace one that was added before; see `encoders.register_strategy`."""
        name = getattr(strategy, "name", None)
        plugin = Plugin(str(name), RUN_TIME, f"{strategy.__module__}:{strategy.__qualname__}", lambda: strategy)
        offer = make_offer(plugin, name, strategy, getattr(strategy, "config_class", None), False)
        _checked_strategy(offer, _checked_config(offer.name, offer.config))
        with self._lock:
            taken = self._offers.get(offer.name)
            if taken is not None and taken.plugin.distribution != RUN_TIME:
                raise ValueError(f"register_strategy: name must be a new one; got {offer.name!r}, which is taken by "
                                 f"{taken.plugin.origin}; give the strategy and its config another name")
            self._offers[offer.name] = offer
            self._strategies.pop(offer.name, None)

    def names(self) -> List[str]:
        """The registered names, in order; nothing is imported."""
        return list(self._offers)

    def offer(self, name: str) -> Offer:
        """The plugin that offers ``name``, and the offer.

        Raises:
            UnknownEncoderError: no plugin does.
            PluginError: the plugin of that name is broken or blocked.
        """
        if isinstance(name, str) and name in self._offers:
            return self._offers[name]
        failed = [found for found in self._found if found.failure]
        for found in failed:
            if found.plugin.name == name:
                raise _plugin_error(name, found.plugin, found.failure, found.blocked)
        hint = nearest(name, self._offers)
        known = "known: " + ", ".join(self._offers)
        lost = ", ".join(f"{found.plugin.name!r} ({found.plugin.origin})" for found in failed)
        parts = [f"encoder {name!r} is not known"] + ([hint] if hint else []) + [known]
        raise UnknownEncoderError("; ".join(parts + ([f"plugins that did not load: {lost}"] if lost else [])))

    def config_class(self, name: str) -> Type[EncoderConfig]:
        """The config dataclass of a strategy; the strategy itself is not imported.

        Raises:
            UnknownEncoderError, PluginError: as `get_strategy`.
        """
        offer = self.offer(name)
        try:
            return _checked_config(name, _resolve(offer.config))
        except Exception as problem:
            raise _plugin_error(name, offer.plugin, f"{type(problem).__name__}: {problem}") from problem

    def get_strategy(self, name: str) -> "EncoderStrategy":
        """The strategy of that name; see `encoders.get_strategy`."""
        offer = self.offer(name)
        with self._lock:
            if name not in self._strategies:
                config_class = self.config_class(name)
                try:
                    strategy = _checked_strategy(offer, config_class)()
                    strategy.origin = offer.plugin.origin
                    self._strategies[name] = strategy
                except Exception as problem:
                    raise _plugin_error(name, offer.plugin, f"{type(problem).__name__}: {problem}") from problem
            return self._strategies[name]

    def available_strategies(self) -> List[StrategyInfo]:
        """Every strategy and every plugin that failed; see `encoders.available_strategies`."""
        rows = [self._row(offer) for offer in self._offers.values()]
        for offer in self._duplicates:
            first = self._offers[offer.name].plugin
            why = f"{offer.name!r} is taken by {first.origin}"
            rows.append(StrategyInfo.of(offer.name, offer.plugin, "duplicate", why))
        for found in self._found:
            if found.failure:
                state = "blocked" if found.blocked else "failed"
                rows.append(StrategyInfo.of(found.plugin.name, found.plugin, state, found.failure))
        return rows

    def offers(self) -> List[Offer]:
        """All offers, in order."""
        return list(self._offers.values())

    def failed(self) -> List[Found]:
        """Plugins that are broken or blocked."""
        return [found for found in self._found if found.failure]

    def _row(self, offer: Offer) -> StrategyInfo:
        try:
            self.get_strategy(offer.name)
        except PluginError as problem:
            cause = problem.__cause__
            return StrategyInfo.of(offer.name, offer.plugin, "failed", f"{type(cause).__name__}: {cause}")
        return StrategyInfo.of(offer.name, offer.plugin, "ready")


_default: Optional[Registry] = None
_default_lock = threading.Lock()
_registered: Dict[str, Type["EncoderStrategy"]] = {}  # separate, so that a new search for plugins keeps them


def default_registry(refresh: bool = False) -> Registry:
    """The registry of this process, made on first use from the installed plugins.

    Args:
        refresh: search for plugins again, e.g. after a package was installed or ``ENCODERS_BLOCK`` (names of plugins,
            separated by commas) was changed.
    """
    global _default
    with _default_lock:
        if _default is None or refresh:
            names = os.environ.get(BLOCK_VARIABLE, "").split(",")
            _default = Registry(blocked=[name.strip() for name in names if name.strip()])
            for strategy in _registered.values():
                _default.register(strategy)
        return _default


def register_strategy(strategy: Type["EncoderStrategy"]) -> Type["EncoderStrategy"]:
    """Make a strategy of your own available by its name in this process: for `build_encoder`, estimators and the
    application.

    Encoders that were saved with it can be loaded by every program that registers it. Registering another class with
    the same name replaces the first one, for instance if a notebook's cell runs again.

    Args:
        strategy: a subclass of `encoders.EncoderStrategy` with ``name`` and ``config_class``.

    Returns:
        The class, so that this function can be used as a decorator.

    Raises:
        ValueError, TypeError: a built-in or a plugin has this name, or the class does not fit its config.

    Example:
        >>> from encoders.strategies.rnn import GRUEncoderStrategy
        >>> register_strategy(GRUEncoderStrategy)
        Traceback (most recent call last):
          ...
        ValueError: register_strategy: name must be a new one; got 'gru', which is taken by built-in 0.2.0; give the \
strategy and its config another name
    """
    default_registry().register(strategy)
    _registered[strategy.name] = strategy
    return strategy


def get_strategy(name: str) -> "EncoderStrategy":
    """The encoder strategy of that name.

    Returns:
        An instance of the strategy; its ``config_class`` makes configs, its ``build`` makes encoders.

    Raises:
        UnknownEncoderError: the name is unknown; the message has the nearest and all known names.
        PluginError: its plugin is broken or blocked; the message has the plugin, its version and the cause.

    Example:
        >>> get_strategy("gated_deltanet").name
        'gated_deltanet'
    """
    return default_registry().get_strategy(name)


def available_strategies() -> List[StrategyInfo]:
    """All strategies, including those that are broken or blocked.

    Each strategy is imported to find out whether it is ready; a broken plugin is a line of the result, not an error.

    Returns:
        One `StrategyInfo` for each strategy and each plugin that failed.

    Example:
        >>> [row.state for row in available_strategies() if row.name == "gated_deltanet"]
        ['ready']
    """
    return default_registry().available_strategies()


def _resolve(target: Any) -> Any:
    if not isinstance(target, str):
        return target
    module, attribute = target.split(":")
    return getattr(importlib.import_module(module), attribute)


def _checked_config(name: str, config: Any) -> Type[EncoderConfig]:
    if not (inspect.isclass(config) and issubclass(config, EncoderConfig)):
        raise TypeError(f"its config must be a subclass of cfg.encoder.EncoderConfig; got {config!r}")
    default = config.__dataclass_fields__["name"].default
    if default != name:
        raise ValueError(f"the field 'name' of {config.__name__} must default to {name!r}; got {default!r}")
    return config


def _checked_strategy(offer: Offer, config_class: Type[EncoderConfig]) -> Type["EncoderStrategy"]:
    from encoders.strategy import EncoderStrategy  # here, because it imports torch

    strategy = _resolve(offer.strategy)
    if not (inspect.isclass(strategy) and issubclass(strategy, EncoderStrategy)):
        raise TypeError(f"its strategy must be a subclass of encoders.EncoderStrategy; got {strategy!r}")
    wanted = {"name": offer.name, "config_class": config_class}
    for attribute, want in wanted.items():
        got = getattr(strategy, attribute, None)
        if got != want:
            raise ValueError(f"{strategy.__name__}.{attribute} must be {want!r}, as registered; got {got!r}")
    return strategy


def _plugin_error(name: str, plugin: Plugin, cause: Optional[str], blocked: bool = False) -> PluginError:
    if blocked:
        return PluginError(f"encoder {name!r} ({plugin.origin}) is blocked: {cause}; take it out of there to use it")
    return PluginError(f"encoder {name!r} ({plugin.origin}) failed to load: {cause}")
