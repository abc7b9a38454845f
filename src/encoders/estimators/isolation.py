"""Calls without side effects: random generators, threads, switches, warnings and loggers are restored."""

import contextlib
import logging
import os
import random
import warnings
from typing import Iterator, Optional

import numpy as np
import torch

from encoders.training.loop.quiet import LOGGERS, quiet

__all__ = ["isolated"]

_VARIABLES = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "CUBLAS_WORKSPACE_CONFIG")


@contextlib.contextmanager
def isolated(threads: Optional[int]) -> Iterator[None]:
    """Within this context random generators may be seeded and switches set, and other libraries are quiet; at the end
    everything is restored.

    Args:
        threads: of torch on the CPU; None leaves their number.
    """
    held = random.getstate(), np.random.get_state(), torch.get_num_threads()
    switches = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    variables = {name: os.environ.get(name) for name in _VARIABLES}
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    try:
        with warnings.catch_warnings(), torch.random.fork_rng():
            quiet()
            if threads is not None:
                torch.set_num_threads(threads)
            yield
    finally:
        random.setstate(held[0])
        np.random.set_state(held[1])
        torch.set_num_threads(held[2])
        torch.use_deterministic_algorithms(switches[0], warn_only=switches[1])
        torch.backends.cudnn.benchmark = benchmark
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
