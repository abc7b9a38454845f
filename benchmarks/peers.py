"""The other implementations, each brought to one signature; one that cannot be imported raises `Missing`.

Importing transformers chooses its backend by whether ``fla`` can be imported, whatever device the tensors are on, and
with fla installed its CPU path fails. So fla is hidden while transformers is imported, and fla's naive functions,
which need no Triton, are loaded from their files.
"""

import functools
import importlib
import importlib.util
import os
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Dict, Iterator

import torch

from benchmarks.measure import Missing

Op = Callable[..., torch.Tensor]
OURS, TRANSFORMERS, TRITON = "myfla", "transformers chunk", "fla Triton"


def optional(name: str) -> ModuleType:
    """Import a module. Every error is raised as `Missing`; an unsuitable Triton, for example, raises ValueError."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise Missing(f"{type(error).__name__}: {error}") from error


@contextmanager
def hidden(*names: str) -> Iterator[None]:
    """Make ``import name`` fail inside the block."""
    before = {name: sys.modules[name] for name in names if name in sys.modules}
    sys.modules.update(dict.fromkeys(names))
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
        sys.modules.update(before)


@functools.lru_cache(maxsize=None)
def qwen3_next() -> ModuleType:
    """transformers' Qwen3-Next with its PyTorch fallback."""
    with hidden("fla", "causal_conv1d"):
        module = optional("transformers.models.qwen3_next.modeling_qwen3_next")
    optional("transformers.utils.logging").set_verbosity_error()
    return module


@functools.lru_cache(maxsize=None)
def fla_file(path: str) -> ModuleType:
    """One file of an installed fla, without importing the package."""
    spec = importlib.util.find_spec("fla")
    if spec is None or not spec.submodule_search_locations:
        raise Missing("ModuleNotFoundError: No module named 'fla' (pip install --no-deps fla-core)")
    name = "fla_file_" + path.replace("/", "_")[: -len(".py")]
    spec = importlib.util.spec_from_file_location(name, str(Path(next(iter(spec.submodule_search_locations))) / path))
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise Missing(f"{type(error).__name__}: {error}") from error
    return module


@functools.lru_cache(maxsize=None)
def rwkv_ops() -> ModuleType:
    """rwkv_ops in its PyTorch-only form."""
    wanted = {"KERNEL_TYPE": "native", "RWKV_OPS_KERAS_NATIVE": "1", "KERAS_BACKEND": "torch"}
    for name, value in {**wanted, "KERAS_HOME": tempfile.mkdtemp()}.items():
        os.environ.setdefault(name, value)
    return optional("rwkv_ops")


def first(result: Any) -> torch.Tensor:
    """The output, of a result with or without a state."""
    return result[0] if isinstance(result, tuple) else result


def unit(x: torch.Tensor) -> torch.Tensor:
    """Normalise to length one, for forms that do not do this themselves."""
    return x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6)


def _ours_gated(backend: str = "torch") -> Op:
    from myfla.ops.gated_delta_rule import chunk_gated_delta_rule as op

    return lambda q, k, v, g, beta: op(q, k, v, g, beta, use_qk_l2norm_in_kernel=True, backend=backend)[0]


def _ours_gated_recurrent() -> Op:
    from myfla.ops.gated_delta_rule import fused_recurrent_gated_delta_rule as op

    return lambda q, k, v, g, beta: op(q, k, v, g=g, beta=beta, use_qk_l2norm_in_kernel=True, backend="torch")[0]


def _plain_gated_loop() -> Op:
    from myfla.ops.gated_delta_rule import naive_recurrent_gated_delta_rule as op

    return lambda q, k, v, g, beta: op(unit(q), unit(k), v, beta, g)[0]


def _transformers(name: str) -> Op:
    op = getattr(qwen3_next(), name)
    return lambda q, k, v, g, beta: op(q, k, v, g=g, beta=beta, use_qk_l2norm_in_kernel=True)[0]


def _fla_gated(name: str) -> Op:
    op = getattr(fla_file("ops/gated_delta_rule/naive.py"), name)
    return lambda q, k, v, g, beta: op(unit(q), unit(k), v, g=g, beta=beta)[0]


def _rwkv_ops_gated() -> Op:
    op = rwkv_ops().gated_delta_net_chunk
    return lambda q, k, v, g, beta: first(op(q, k, v, g, beta))


def _triton_gated() -> Op:
    if not torch.cuda.is_available():
        raise Missing("no CUDA GPU")
    op = optional("fla.ops.gated_delta_rule").chunk_gated_delta_rule
    return lambda q, k, v, g, beta: op(q, k, v, g=g, beta=beta, use_qk_l2norm_in_kernel=True)[0]


GATED: Dict[str, Callable[[], Op]] = {
    OURS: _ours_gated,
    TRANSFORMERS: functools.partial(_transformers, "torch_chunk_gated_delta_rule"),
    "fla naive chunk": functools.partial(_fla_gated, "naive_chunk_gated_delta_rule"),
    "rwkv_ops chunk": _rwkv_ops_gated,
    "myfla recurrent": _ours_gated_recurrent,
    "transformers recurrent": functools.partial(_transformers, "torch_recurrent_gated_delta_rule"),
    "fla naive recurrent": functools.partial(_fla_gated, "naive_recurrent_gated_delta_rule"),
    "token loop": _plain_gated_loop,
    TRITON: _triton_gated,
}
"""``op(q, k, v, g, beta) -> o``, all ``[B, T, H, ...]``: q and k normalised first, q scaled by ``K ** -0.5``.

That is how both GatedDeltaNet layers call their op.
"""
