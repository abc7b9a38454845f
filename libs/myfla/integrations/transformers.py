"""transformers' models with a gated delta rule (Qwen3-Next, Qwen3.5, OLMo hybrid, ...) on this package's ops.

    from myfla.integrations.transformers import use_myfla

    use_myfla()            # from here on
    with use_myfla():      # or only in here
        model.generate(...)

Where the tensors are decides, call by call: on the CPU these ops compute, whether or not `fla` or `causal_conv1d`
are installed; everywhere else transformers does what it did before, official kernels included.
"""

import functools
import logging
from types import ModuleType, TracebackType
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, Type

import torch

from myfla.utils.errors import value_error

__all__ = ["Patch", "packed_kwargs", "use_myfla"]

_log = logging.getLogger(__name__)


class _Change(NamedTuple):
    """One attribute that was replaced."""

    module: ModuleType
    name: str
    before: Any
    after: Callable


class Patch:
    """What `use_myfla` changed. Leaving its ``with`` block, or `undo`, puts everything back.

    Attributes:
        active: False once undone.
        changed: what was replaced, as ``"module.name"``; empty after `undo`.
    """

    def __init__(self, devices: Tuple[str, ...]) -> None:
        self._devices = devices
        self._changes: List[_Change] = []
        self.active = True

    @property
    def changed(self) -> List[str]:
        return [f"{change.module.__name__}.{change.name}" for change in self._changes]

    def replace(self, module: ModuleType, name: str, kernel: Callable) -> None:
        """Let ``module.name`` be ``kernel`` for tensors on our devices."""
        before = getattr(module, name)
        after = self._choice(before, kernel)
        setattr(module, name, after)
        self._changes.append(_Change(module, name, before, after))

    def undo(self) -> None:
        """Put everything back. A second time does nothing.

        Patches may be undone in any order: one that lies under another stops at once, and leaves with it.
        """
        self.active = False
        for module, name, before, after in reversed(self._changes):
            if getattr(module, name) is after:
                setattr(module, name, _below(before))
        self._changes = []

    def _choice(self, before: Callable, kernel: Callable) -> Callable:
        # `before` may be a module of the `kernels` package: its __dict__ is not to be copied.
        @functools.wraps(before, assigned=("__name__", "__qualname__", "__doc__"), updated=())
        def choose(*args: Any, **kwargs: Any) -> Any:
            first = args[0] if args else next(iter(kwargs.values()))
            ours = self.active and first.device.type in self._devices
            return (kernel if ours else before)(*args, **kwargs)

        choose.patch = self
        return choose

    def __enter__(self) -> "Patch":
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.undo()

    def __repr__(self) -> str:
        return f"Patch(devices={self._devices}, changed={self.changed})"


def use_myfla(devices: Sequence[str] = ("cpu",), families: Optional[Sequence[str]] = None) -> Patch:
    """Let the models of transformers that carry a gated delta rule use these ops, wherever their tensors are ours.

    Replaces the chunked and the recurrent rule, the causal convolution and its one-token form, in every model family
    of the installed transformers that has them, for models that exist and models to come. The change holds for the
    whole process. It makes packed sequences work (see `packed_kwargs`), which transformers alone refuses on the CPU.

    Args:
        devices: device types on which these ops compute. Elsewhere transformers does what it did.
        families: names as in ``transformers.models``, e.g. ``["qwen3_next"]``; all by default, and any model whose
            code came with its checkpoint, if it is imported.

    Returns:
        The `Patch`, at work already. Use it as a context manager, or call its ``undo()``, or let it stand.

    Raises:
        ImportError: transformers is missing, or too old.
        ValueError: an unknown device type or family.

    Example:
        >>> with use_myfla(families=["qwen3_next"]) as patch:
        ...     patch.changed[0]
        'transformers.models.qwen3_next.modeling_qwen3_next.torch_chunk_gated_delta_rule'
    """
    hf_modules = _hf_modules()
    devices = _device_types(devices)
    modules = hf_modules.load_families(families)
    if families is None:
        modules = modules + hf_modules.loaded_remote_code()
    patch = Patch(devices)
    for module in modules:
        for name in hf_modules.called_kernels(module):
            patch.replace(module, name, hf_modules.KERNELS[name])
    _log.info("myfla computes on %s in %s", ", ".join(devices), ", ".join(module.__name__ for module in modules))
    return patch


def packed_kwargs(position_ids: torch.Tensor) -> Dict[str, Any]:
    """What a model's forward is to be told about sequences that are packed in one row.

    From positions alone transformers parts the sequences in its attention layers, but not in its gated delta rule:
    that needs the offsets, and the convolution the sequence numbers. (`transformers.DataCollatorWithFlattening` gives
    the same with ``return_flash_attn_kwargs=True, return_seq_idx=True``.)

    Args:
        position_ids: ``[1, T]`` integers that start anew at every sequence, e.g. ``[[0, 1, 2, 0, 1]]``.

    Returns:
        ``position_ids``, ``seq_idx [1, T]``, ``cu_seq_lens_q`` and ``cu_seq_lens_k`` ``[N + 1]`` (int32),
        ``max_length_q``, ``max_length_k``, and ``use_cache=False``: with a cache, transformers' attention masks would
        let the sequences see each other.

    Raises:
        ValueError: not one row of integers.

    Example:
        >>> packed_kwargs(torch.tensor([[0, 1, 2, 0, 1]]))["cu_seq_lens_q"].tolist()
        [0, 3, 5]
    """
    if position_ids.dim() != 2 or position_ids.shape[0] != 1 or position_ids.is_floating_point():
        got = f"{position_ids.dtype} {tuple(position_ids.shape)}"
        raise value_error("packed_kwargs", "position_ids", "must be integers [1, T]", got, "pack into one row")
    starts = torch.ones_like(position_ids, dtype=torch.bool)
    starts[:, 1:] = position_ids[:, 1:] != position_ids[:, :-1] + 1
    first = starts[0].nonzero().flatten()
    offsets = torch.cat([first, first.new_tensor([position_ids.shape[1]])]).int()
    longest = int((offsets[1:] - offsets[:-1]).max()) if len(first) else 0
    return {
        "position_ids": position_ids,
        "seq_idx": (starts.cumsum(1) - 1).int(),
        "cu_seq_lens_q": offsets,
        "cu_seq_lens_k": offsets,
        "max_length_q": longest,
        "max_length_k": longest,
        "use_cache": False,
    }


def _hf_modules() -> ModuleType:
    try:
        from myfla.integrations import hf_modules
    except ImportError as error:
        if error.name != "transformers":
            raise
        raise ImportError("use_myfla: transformers is not installed; `pip install 'myfla[hf]'`") from error
    return hf_modules


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


def _below(function: Any) -> Any:
    """What lies under patches that are undone."""
    while isinstance(getattr(function, "patch", None), Patch) and not function.patch.active:
        function = function.__wrapped__
    return function
