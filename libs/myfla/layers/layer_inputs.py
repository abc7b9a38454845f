"""Checks that every layer makes first: of the input, the mask, the cache and the states in it."""

from typing import Any, Dict, Optional, Sequence, Tuple

import torch

from myfla.utils.dtypes import accumulation_dtype, autocast_enabled
from myfla.utils.errors import CacheError, message, value_error
from myfla.utils.tracing import tracing

__all__ = [
    "INERT_FORWARD", "check_hidden_states", "check_positive", "check_state", "read_layer_state", "real_tokens",
    "writes_over",
]  # fmt: skip

# Arguments that official models and generation loops pass to layers that do not use them.
INERT_FORWARD = (
    "cache_position", "cu_seqlens_cpu", "logits_to_keep", "num_items_in_batch", "output_hidden_states", "position_ids",
    "return_dict", "token_type_ids",
)  # fmt: skip


def check_positive(who: str, **sizes: Any) -> None:
    """Refuse a size that is not a positive integer."""
    for field, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise value_error(who, field, "must be a positive integer", size)


def check_hidden_states(who: str, x: Any, hidden_size: int, weight: Any) -> None:
    """Refuse an input that is not ``[B, T, hidden_size]`` in the dtype and on the device of the weights.

    Where ``weight`` is no floating-point tensor (a quantised or wrapped projection), only the shape is checked.
    """
    field = "hidden_states"
    if not isinstance(x, torch.Tensor):
        raise value_error(who, field, "must be a tensor [B, T, hidden_size]", type(x).__name__)
    if x.dim() != 3 or x.shape[2] != hidden_size:
        raise value_error(who, field, f"must have shape [B, T, {hidden_size}]", list(x.shape))
    if not x.is_floating_point():
        raise value_error(who, field, "must be floating point", x.dtype, "embed token ids first")
    if not isinstance(weight, torch.Tensor) or not weight.is_floating_point():
        return
    if x.dtype != weight.dtype and not autocast_enabled(x.device.type):
        hint = f"convert the input with x.to({weight.dtype}), or the layer with layer.to({x.dtype})"
        raise value_error(who, field, f"must be {weight.dtype} as the layer's weights", x.dtype, hint)
    if x.device != weight.device:
        raise value_error(who, field, f"must be on {weight.device} as the layer's weights", str(x.device))


def real_tokens(who: str, attention_mask: Any, batch: int, q_len: int, x: torch.Tensor) -> Optional[torch.Tensor]:
    """The part of the mask for this input, or None if it has no pads.

    Args:
        attention_mask: ``[B, q_len]`` or longer (then its last q_len columns count), 1 for tokens and 0 for pads.
        x: the input.

    Returns:
        ``[B, q_len]`` int64 of 0 and 1 with at least one 0, or None. In a recorded graph and on the device meta always
        the mask, unchecked.

    Raises:
        ValueError: another rank or size, or other values than 0 and 1.
    """
    field = "attention_mask"
    if not isinstance(attention_mask, torch.Tensor) or attention_mask.dim() != 2:
        got = list(attention_mask.shape) if isinstance(attention_mask, torch.Tensor) else type(attention_mask).__name__
        raise value_error(who, field, "must have shape [B, T], 1 for tokens and 0 for pads", got)
    if attention_mask.shape[0] != batch or attention_mask.shape[1] < q_len:
        rule = f"must have shape [{batch}, {q_len}] or more columns"
        raise value_error(who, field, rule, list(attention_mask.shape))
    if attention_mask.is_meta and not x.is_meta:
        raise value_error(who, field, "must have values", "a tensor on the device meta")
    mask = attention_mask[:, attention_mask.shape[1] - q_len :]
    is_one = mask == 1
    if tracing(attention_mask):  # the values cannot be read
        return is_one.to(torch.int64)
    every, valid = torch.stack([is_one.all(), (is_one | (mask == 0)).all()]).tolist()
    if not valid:
        strange = mask[~(is_one | (mask == 0))][0].item()
        raise value_error(who, field, "must hold 0 and 1 only", strange, "additive masks are not supported")
    return None if every else is_one.to(torch.int64)


def read_layer_state(who: str, module: Any, past_key_values: Any, fields: Sequence[str]) -> Optional[Dict[str, Any]]:
    """The states of a layer in a cache, or None if the layer has read no tokens.

    Raises:
        ValueError: the module has no ``layer_idx``.
        CacheError: not a cache, or one that lacks a state of ``fields`` although it has seen tokens.
    """
    if past_key_values is None:
        return None
    if not all(hasattr(past_key_values, name) for name in ("update", "__getitem__", "__len__")):
        got, hint = type(past_key_values).__name__, "use myfla.models.utils.Cache, or Cache.from_legacy_cache"
        raise CacheError(message(who, "past_key_values", "must be a Cache", got, hint))
    index = module.layer_idx
    if index is None:
        raise value_error(who, "past_key_values", "requires `layer_idx`", None, "build the layer with layer_idx=")
    state = past_key_values[index] if len(past_key_values) > index else None
    if not state or all(state.get(field) is None for field in (*fields, "conv_state")):
        return None
    if getattr(past_key_values, "get_seq_length", lambda layer_idx: 1)(index) == 0:
        return state  # seeded by hand: what is missing is zero
    for field in fields:
        if state.get(field) is None:
            rule = f"of layer {index} must be there, since the layer has seen tokens"
            raise CacheError(message(who, field, rule, None, "the cache belongs to a layer with other settings"))
    return state


def writes_over(cache: Any, state: Optional[torch.Tensor]) -> bool:
    """Whether the recurrent form may overwrite the state in a cache: see `Cache.in_place`."""
    allowed = getattr(cache, "inplace", False) and not torch.is_grad_enabled() and not tracing()
    return bool(allowed) and state is not None and state.is_contiguous()


def check_state(who: str, field: str, state: Any, axes: Sequence[Tuple[str, int]], like: torch.Tensor,
                wide: bool = False) -> None:
    """Refuse a cached tensor of another shape, device or dtype than the layer needs.

    Args:
        field: its name.
        axes: name and size of each axis.
        like: the layer's input.
        wide: it is a sum, kept in float32 (float64).
    """
    hint = "the cache belongs to another layer, model or batch"
    shape = [size for _, size in axes]
    narrow = isinstance(state, torch.Tensor) and state.dtype is torch.float32
    usual = narrow and not (wide and like.dtype is torch.float64)
    if usual and state.shape == tuple(shape) and state.device == like.device:
        return  # the checks that follow report what is wrong with the others
    if not isinstance(state, torch.Tensor) or state.dim() != len(axes):
        got = list(state.shape) if isinstance(state, torch.Tensor) else type(state).__name__
        raise CacheError(message(who, field, f"must be a tensor {shape}", got, hint))
    if wide and list(state.shape) != shape and [*state.shape[:-2], state.shape[-1], state.shape[-2]] == shape:
        raise CacheError(message(who, f"{field} layout", f"must be {shape}", list(state.shape),
                                 "this is a V-first state; bring it in with Cache.from_fla"))
    for (name, size), found in zip(axes, state.shape):
        if found != size:
            raise CacheError(message(who, f"{field} {name}", f"must be {size}", found, hint))
    if state.device != like.device:
        raise CacheError(message(who, f"{field} device", f"must be {like.device}", str(state.device), "use cache.to()"))
    needed = accumulation_dtype(like)
    if (wide and state.dtype != needed) or not state.is_floating_point():
        rule = f"must be {needed}" if wide else "must be floating point"
        raise CacheError(message(who, f"{field} dtype", rule, state.dtype, "use cache.to(dtype=)"))
