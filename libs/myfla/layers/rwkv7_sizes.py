"""The sizes of RWKV-7's layers: rules and defaults."""

from typing import Any, Optional, Tuple

from myfla.layers.layer_inputs import check_positive
from myfla.utils.errors import value_error

__all__ = ["check_depth", "head_sizes", "low_rank"]


def check_depth(who: str, layer_idx: Any, num_hidden_layers: Any) -> None:
    """Refuse a layer number or depth that is none, or that contradict each other."""
    if layer_idx is not None and (isinstance(layer_idx, bool) or not isinstance(layer_idx, int) or layer_idx < 0):
        raise value_error(who, "layer_idx", "must be an integer from 0, or None", layer_idx)
    if num_hidden_layers is None:
        return
    lowest = 1 if layer_idx is None else layer_idx + 1
    whole = isinstance(num_hidden_layers, int) and not isinstance(num_hidden_layers, bool)
    if not whole or num_hidden_layers < lowest:
        rule = f"must be an integer from {lowest}" + ("" if layer_idx is None else f" for layer_idx={layer_idx}")
        raise value_error(who, "num_hidden_layers", rule, num_hidden_layers)


def head_sizes(
    who: str, hidden: int, head: Optional[int], heads: Optional[int], value: Optional[int]
) -> Tuple[int, int, int]:
    """Key size, number of heads, value size of one head."""
    check_positive(who, hidden_size=hidden)
    if head is not None:
        field, size = "head_dim", head
    elif heads is not None:
        field, size = "num_heads", heads
    else:
        raise value_error(who, "head_dim", "must be given if num_heads is not", None)
    check_positive(who, **{field: size})
    if hidden % size:
        raise value_error(who, field, f"must divide hidden_size={hidden}", size)
    head, heads = (size, hidden // size) if field == "head_dim" else (hidden // size, size)
    value = hidden if value is None else value
    check_positive(who, value_dim=value)
    if value % heads:
        raise value_error(who, "value_dim", f"must be a multiple of the number of heads, {heads}", value)
    return head, heads, value // heads


def low_rank(who: str, field: str, given: Optional[int], wanted: float) -> int:
    """A bottleneck's size: as given, or the nearest multiple of 32 to what is wanted, at least 32."""
    if given is None:
        return max(32, int(round(wanted / 32) * 32))
    check_positive(who, **{field: given})
    return given
