"""The configs of a sweep's jobs before any of them runs."""

import itertools
from functools import partial
from typing import Any, Callable, Iterator, List, Tuple

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from omegaconf import DictConfig, OmegaConf

__all__ = ["composed_jobs"]

BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"


def composed_jobs(config: DictConfig) -> Iterator[Tuple[List[str], Callable[[], DictConfig]]]:
    """``(overrides, compose)`` of every job, if all combinations run. A search chooses values while it runs: for it,
    one for each value of each setting (both ends of an interval), with the first values of the other settings.

    Args:
        config: the sweep's own, with ``hydra``.
    """
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    params = OmegaConf.to_container(OmegaConf.select(config, "hydra.sweeper.params") or OmegaConf.create({}))
    named = params.items() if isinstance(params, dict) else ()
    given = [f"{key!s}={value}" for key, value in named] + list(config.hydra.overrides.task)
    values = {override.get_key_element(): _values(override) for override in parser.parse_overrides(given)}
    every = config.hydra.sweeper.get("_target_") == BASIC
    for job in _product(list(values.values())) if every else _one_by_one(list(values.values())):
        yield job, partial(compose, config.hydra.job.config_name, [*config.hydra.overrides.hydra, *job],
                           return_hydra_config=True)


def _values(override: Override) -> List[str]:
    """The values of a setting, as overrides of single jobs."""
    key = override.get_key_element()
    if not override.is_sweep_override():
        return [f"{key}={override.get_value_element_as_str()}"]
    if override.is_discrete_sweep():
        return [f"{key}={value}" for value in override.sweep_string_iterator()]
    value: Any = override.value()
    return [f"{key}={end}" for end in (value.start, value.end)] if isinstance(value, IntervalSweep) else []


def _product(values: List[List[str]]) -> Iterator[List[str]]:


    return map(list, itertools.product(*values))


def _one_by_one(values: List[List[str]]) -> Iterator[List[str]]:
    first = [options[0] for options in values if options]
    yield first
    for place, options in enumerate(options for options in values if options):
        for option in options[1:]:
            yield [*first[:place], option, *first[place + 1 :]]
