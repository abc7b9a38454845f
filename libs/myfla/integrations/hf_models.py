"""Which modules of transformers define a model that these ops serve, and what to replace in them."""

import ast
import functools
import importlib
import inspect
import sys
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any, Callable, Dict, FrozenSet, List, NamedTuple, Optional, Sequence

import transformers

from myfla.integrations import hf_grouped, hf_layers, hf_mamba, hf_rules
from myfla.utils.errors import nearest, value_error

RULES: Dict[str, Callable] = {
    "torch_chunk_gated_delta_rule": hf_rules.chunk_gated_delta_rule,
    "chunk_gated_delta_rule": hf_rules.chunk_gated_delta_rule,
    "torch_recurrent_gated_delta_rule": hf_rules.recurrent_gated_delta_rule,
    "fused_recurrent_gated_delta_rule": hf_rules.recurrent_gated_delta_rule,
    "chunk_kimi_delta_attention": hf_rules.chunk_kimi_delta_attention,
    "recurrent_kimi_delta_attention": hf_rules.recurrent_kimi_delta_attention,
    "mamba2_chunk_scan": hf_mamba.mamba2_chunk_scan,
    "mamba2_selective_state_update": hf_mamba.mamba2_selective_state_update,
}
"""By the name that a model calls: the function to call instead."""

CONVOLUTIONS: Dict[str, Callable] = {
    "causal_conv1d_fn": hf_layers.causal_conv1d_fn,
    "causal_conv1d_update": hf_layers.causal_conv1d_update,
}
"""The same. A model that calls none of these and none of `RULES` is not changed."""

OTHER_RULE = "mamba_selective_scan("
"""What Mamba-1's families call, which stay as they are: their time goes into this scan, not into the convolution."""

NORM = "RMSNormGated"
"""Classes whose names end so hold the gated norm after the rule."""


FAMILIES = frozenset((
    "bailing_hybrid", "glm5_next", "kimi_linear", "lara_mini", "olmo_hybrid", "qwen3_5", "qwen3_5_moe", "qwen3_next",
    "qwen4_exp",
    "bamba", "falcon_h1", "granitemoehybrid", "mamba2", "nemotron_h", "zamba2",
    "inkling", "inkling2", "inkling2_loop", "lfm2", "lfm2_moe", "lfm3",
))  # fmt: skip
"""Families that are tested: with a delta rule, with Mamba-2, with a short convolution alone. A newer transformers may
have more."""


class Target(NamedTuple):
    """One attribute to replace."""

    owner: Any  # the module, or a class in it
    name: str
    ours: Callable


@functools.lru_cache(maxsize=None)
def model_files() -> Dict[str, str]:
    """The model families of the installed transformers that these ops serve, and their modules' names.

    Found by the text of the files, because importing every model would take minutes.

    Example:
        >>> model_files()["qwen3_next"]
        'transformers.models.qwen3_next.modeling_qwen3_next'
    """
    found = {}
    for path in sorted((Path(transformers.__file__).parent / "models").glob("*/modeling_*.py")):
        text = path.read_text(encoding="utf-8")
        names = RULES if OTHER_RULE in text else (*RULES, *CONVOLUTIONS)
        if any(f"{name}(" in text for name in names):
            found[path.parent.name] = f"transformers.models.{path.parent.name}.{path.stem}"
    return found


def load_families(names: Optional[Sequence[str]] = None) -> List[ModuleType]:
    """Import the modules of these families, or of all.

    Unless it was requested by name, a family that is not in `FAMILIES` comes with a warning, or is left out with one if
    its layers keep the functions that they found when they were built.

    Raises:
        ValueError: a family that the installed transformers does not have.
        ImportError: a transformers whose layers keep the functions that they found when they were built.
    """
    files, modules = model_files(), []
    for name in files if names is None else names:
        if name not in files:
            known = f"transformers {transformers.__version__} has {sorted(files)}"
            hint = "; ".join(text for text in (nearest(name, files), known) if text)
            raise value_error("use_myfla", "families", "must be families that these ops serve", name, hint)
        module = importlib.import_module(files[name])
        if names is not None or name in FAMILIES or _covers_untested(name, module):
            modules.append(module)
    foreign = [module.__name__ for module in modules if not _is_covered(module)]
    if foreign or not modules:
        what = f"{foreign[0]} binds its functions to the layers" if foreign else "has no model that these ops serve"
        raise ImportError(
            f"use_myfla: transformers {transformers.__version__}: {what}; "
            "transformers 5.15 or newer is needed, `pip install 'myfla[hf]'`"
        )
    return modules


def _covers_untested(family: str, module: ModuleType) -> bool:
    """Warn of a family that came with a newer transformers; whether its functions can be replaced."""
    covered = _is_covered(module)
    left = "it binds its functions to the layers and is left"
    what = "its functions are replaced by their names" if covered else left
    warnings.warn(
        f"use_myfla: transformers {transformers.__version__} has the family {family!r}, which this version of myfla is "
        f"not tested with: {what}; name the families that you use, families=[...]",
        stacklevel=4,
    )
    return covered


def loaded_remote_code() -> List[ModuleType]:
    """Models whose code came with a checkpoint, if they are imported: transformers keeps them in one package."""
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("transformers_modules.")]
    return [module for module in modules if _calls_a_rule(module)]


def targets(module: ModuleType) -> List[Target]:
    """What to replace in a module: functions that it looks up in itself at every call, and its gated norm.

    To replace those reaches every layer, whether it was built before or comes later.
    """
    called = _called_names(module)
    functions = {**RULES, **CONVOLUTIONS}
    names = called & vars(module).keys()
    found = [Target(module, name, ours) for name, ours in functions.items() if name in names]
    classes = [layer for layer in list(vars(module).values()) if inspect.isclass(layer)]
    own = [layer for layer in classes if layer.__module__ == module.__name__ and "forward" in vars(layer)]
    for layer in own:
        if layer.__name__.endswith(NORM):
            found.append(Target(layer, "forward", hf_layers.rms_norm_gated))
        elif hf_grouped.is_known(layer):
            ours = functools.partial(hf_grouped.forward, vars(layer)["forward"])
            found.append(Target(layer, "forward", ours))
    return found


def unknown_layers(module: ModuleType) -> List[str]:
    """Layers that training could go through in one piece, were they not of another version: only their functions are.

    Example:
        >>> unknown_layers(importlib.import_module(model_files()["olmo_hybrid"]))
        []
    """
    classes = [layer for layer in list(vars(module).values()) if inspect.isclass(layer)]
    own = [layer for layer in classes if layer.__module__ == module.__name__ and hf_grouped.sorts_by_kind(layer)]
    return [layer.__name__ for layer in own if not hf_grouped.is_known(layer) and not _is_ours(layer)]


def _is_ours(layer: type) -> bool:
    return hasattr(vars(layer)["forward"], "patch")


@functools.lru_cache(maxsize=None)
def _called_names(module: ModuleType) -> FrozenSet[str]:
    """Read from the source, so that wrapped layers work too."""
    try:
        tree = ast.parse(inspect.getsource(module))
    except (OSError, TypeError):  # remote code without a file
        return frozenset()
    functions = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    return frozenset(function.id for function in functions if isinstance(function, ast.Name))


def _is_covered(module: ModuleType) -> bool:
    return any(target.owner is module for target in targets(module))


def _calls_a_rule(module: ModuleType) -> bool:
    return any(target.name in RULES for target in targets(module))
