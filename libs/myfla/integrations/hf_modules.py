"""Which modules of transformers define a model with a gated delta rule, and under which names it calls it."""

import ast
import functools
import importlib
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Callable, Dict, FrozenSet, List, Optional, Sequence

import transformers

from myfla.integrations import hf_kernels
from myfla.utils.errors import nearest, value_error

MARK = "gated_delta_rule"
"""The file of a model with a gated delta rule contains this word."""

KERNELS: Dict[str, Callable] = {
    "torch_chunk_gated_delta_rule": hf_kernels.chunk_gated_delta_rule,
    "chunk_gated_delta_rule": hf_kernels.chunk_gated_delta_rule,
    "torch_recurrent_gated_delta_rule": hf_kernels.recurrent_gated_delta_rule,
    "fused_recurrent_gated_delta_rule": hf_kernels.recurrent_gated_delta_rule,
    "causal_conv1d_fn": hf_kernels.causal_conv1d_fn,
    "causal_conv1d_update": hf_kernels.causal_conv1d_update,
}
"""By the name that a model calls: the function to call instead."""


@functools.lru_cache(maxsize=None)
def model_files() -> Dict[str, str]:
    """The model families of the installed transformers that carry a gated delta rule, and their modules' names.

    Found by the text of the files, because importing every model would take minutes.

    Example:
        >>> model_files()["qwen3_next"]
        'transformers.models.qwen3_next.modeling_qwen3_next'
    """
    found = {}
    for path in sorted((Path(transformers.__file__).parent / "models").glob("*/modeling_*.py")):
        if MARK in path.read_text(encoding="utf-8"):
            found[path.parent.name] = f"transformers.models.{path.parent.name}.{path.stem}"
    return found


def load_families(names: Optional[Sequence[str]] = None) -> List[ModuleType]:
    """Import the modules of these families, or of all.

    Raises:
        ValueError: a family that the installed transformers does not have.
        ImportError: a transformers whose layers keep the kernels that they found when they were built.
    """
    files, modules = model_files(), []
    for name in files if names is None else names:
        if name not in files:
            hint = nearest(name, files) or f"transformers {transformers.__version__} has {sorted(files)}"
            raise value_error("use_myfla", "families", "must be families with a gated delta rule", name, hint)
        modules.append(importlib.import_module(files[name]))
    foreign = [module.__name__ for module in modules if not _calls_the_rule(module)]
    if foreign or not files:
        what = f"{foreign[0]} binds its kernels to the layers" if foreign else "has no model with a gated delta rule"
        raise ImportError(
            f"use_myfla: transformers {transformers.__version__}: {what}; "
            "transformers 5.15 or newer is needed, `pip install 'myfla[hf]'`"
        )
    return modules


def loaded_remote_code() -> List[ModuleType]:
    """Models whose code came with a checkpoint, if they are imported: transformers keeps them in one package."""
    modules = [module for name, module in sys.modules.items() if name.startswith("transformers_modules.")]
    return [module for module in modules if _calls_the_rule(module)]


def called_kernels(module: ModuleType) -> List[str]:
    """The names of `KERNELS` that this module calls through its own namespace, looked up anew at every call.

    To replace such a name reaches every layer, whether it was built before or comes later.
    """
    called = _called_names(module)
    return [name for name in KERNELS if name in called and callable(getattr(module, name, None))]


@functools.lru_cache(maxsize=None)
def _called_names(module: ModuleType) -> FrozenSet[str]:
    """Read from the source, so that layers which somebody has wrapped are no obstacle."""
    try:
        tree = ast.parse(inspect.getsource(module))
    except (OSError, TypeError):  # remote code without a file
        return frozenset()
    functions = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return frozenset(function.id for function in functions if isinstance(function, ast.Name))


def _calls_the_rule(module: ModuleType) -> bool:
    return any(MARK in name for name in called_kernels(module))
