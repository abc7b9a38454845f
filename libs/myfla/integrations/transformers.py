"""transformers' models with a delta rule, Mamba-2 or a short convolution (Qwen3-Next, Granite 4, LFM2, ...) on this
package's ops.

    from myfla.integrations.transformers import use_myfla

    use_myfla()            # from here on
    with use_myfla():      # or only in here
        model.generate(...)

The device of the tensors decides in each call: on the CPU these operations compute, whether or not `fla` or
`causal_conv1d` are installed; on other devices transformers' own code runs, official kernels included.
"""

import logging
from types import ModuleType
from typing import Optional, Sequence, Tuple

import torch

from myfla.integrations.packing import packed_kwargs
from myfla.integrations.patch import Patch
from myfla.utils.errors import value_error

__all__ = ["Patch", "packed_kwargs", "use_myfla"]

_log = logging.getLogger(__name__)


def use_myfla(devices: Sequence[str] = ("cpu",), families: Optional[Sequence[str]] = None) -> Patch:
    """Let models of transformers use these operations for tensors on ``devices``.

    This replaces the chunked and the recurrent rule (the gated delta rule, Kimi Delta Attention, Mamba-2's state space
    dual), the causal convolution and its one-token form, and the gated norm, in every model family of the installed
    transformers that has them, for existing and future models. Families of Mamba-1 do not change. The replacement is in
    effect for the whole process. It makes packed sequences work on the CPU (see `packed_kwargs`), if the model passes
    their offsets to its layers (inkling and mamba2 with a head do not).

    Args:
        devices: device types on which these operations compute. On other devices transformers' own code runs.
        families: names as in ``transformers.models``, e.g. ``["qwen3_next"]``; by default all, and imported models
            whose code came with a checkpoint.

    Returns:
        The `Patch`, already in effect. Use it as a context manager, or call its ``undo()``, or keep it.

    Raises:
        ImportError: transformers is missing, or too old.
        ValueError: an unknown device type or family.

    Example:
        >>> with use_myfla(families=["qwen3_next"]) as patch:
        ...     patch.changed[0]
        'transformers.models.qwen3_next.modeling_qwen3_next.torch_chunk_gated_delta_rule'
    """
    hf_models = _hf_models()
    devices = _device_types(devices)
    modules = hf_models.load_families(families)
    if families is None:
        modules = modules + hf_models.loaded_remote_code()
    patch = Patch(devices)
    for module in modules:
        for layer in hf_models.unknown_layers(module):
            _log.info("%s.%s is of a version not known here: its functions are replaced, not its forward pass",
                      module.__name__, layer)
        for target in hf_models.targets(module):
            patch.replace(*target)
    _log.info("myfla computes on %s in %s", ", ".join(devices), ", ".join(module.__name__ for module in modules))
    return patch


def _hf_models() -> ModuleType:
    try:
        from myfla.integrations import hf_models
    except ImportError as error:
        if error.name != "transformers":
            raise
        raise ImportError("use_myfla: transformers is not installed; `pip install 'myfla[hf]'`") from error
    return hf_models


def _device_types(devices: Sequence[str]) -> Tuple[str, ...]:
    types = (devices,) if isinstance(devices, str) else tuple(devices)
    for name in types:
        try:
            plain = torch.device(name).type == name
        except (RuntimeError, TypeError):
            plain = False
        if not plain:
            raise value_error("use_myfla", "devices", "must be device types such as 'cpu' or 'cuda'", name)
    return types
