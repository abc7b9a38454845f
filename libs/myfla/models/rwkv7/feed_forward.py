"""RWKV-7's feed-forward block, which looks one token back."""

from typing import Any, Callable, Dict, Optional, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from myfla.layers.layer_inputs import INERT_FORWARD, check_hidden_states, check_positive, check_state
from myfla.layers.lora import orthogonal_
from myfla.layers.rwkv7_sizes import check_depth
from myfla.layers.token_rows import read_rows
from myfla.layers.utils import get_layer_cache, update_layer_cache
from myfla.modules.token_shift import token_shift
from myfla.ops.rwkv7.channel_mixing import squared_relu
from myfla.utils.errors import refuse_unknown, value_error

__all__ = ["RWKV7FeedForward"]

NAME = "RWKV7FeedForward"
KEYWORDS = (
    "hidden_size", "hidden_ratio", "intermediate_size", "hidden_act", "layer_idx", "num_hidden_layers", "device",
    "dtype",
)  # fmt: skip
FORWARD = ("x", "attention_mask", "state", "cu_seqlens", "use_cache")
INERT = (*INERT_FORWARD, "output_attentions", "past_key_values", "v_first")
ACTIVATIONS: Dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "sqrelu": squared_relu,
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
    "sigmoid": torch.sigmoid,
    "gelu": lambda x: F.gelu(x, approximate="tanh"),
}


def inner_size(hidden_size: int, hidden_ratio: Optional[float] = None, intermediate_size: Optional[int] = None) -> int:
    """The official number of inner channels; see `RWKV7FeedForward`.

    Example:
        >>> inner_size(40), inner_size(40, intermediate_size=7)
        (160, 7)
    """
    if intermediate_size is not None:
        return intermediate_size
    return 32 * -(-int(hidden_size * (4 if hidden_ratio is None else hidden_ratio)) // 32)


class RWKV7FeedForward(nn.Module):
    """``value(relu(key(x + (x_before - x) x_k))^2)``, RWKV-7's channel mixing (arXiv 2503.14456).

    In float16 the square must stay below 65504: what ``key`` gives, below 256.

    Args:
        hidden_size: channels in and out, D.
        hidden_ratio: inner over outer channels, 4 by default; the inner number is rounded up to a multiple of 32.
        intermediate_size: inner channels, F; wins over ``hidden_ratio``.
        hidden_act: ``"sqrelu"``, ``"relu"``, ``"silu"``, ``"swish"``, ``"gelu"`` or ``"sigmoid"``.
        layer_idx: the layer's number and its slot in a cache; None begins as layer 0.
        num_hidden_layers: layers of the model, for the initialisation; ``layer_idx + 1`` by default.
        device, dtype: of the parameters.

    Parameters: ``x_k [D]``, ``key.weight [F, D]``, ``value.weight [D, F]`` (zero at first).

    Raises:
        ValueError: an argument out of range.
        TypeError: an unknown keyword.

    Example:
        >>> block = RWKV7FeedForward(8, layer_idx=0, num_hidden_layers=2)
        >>> block(torch.randn(2, 5, 8))[0].shape
        torch.Size([2, 5, 8])
    """

    def __init__(
        self,
        hidden_size: int,
        hidden_ratio: Optional[float] = None,
        intermediate_size: Optional[int] = None,
        hidden_act: str = "sqrelu",
        layer_idx: Optional[int] = None,
        num_hidden_layers: Optional[int] = None,
        *,
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        refuse_unknown(NAME, kwargs, KEYWORDS)
        check_positive(NAME, hidden_size=hidden_size)
        check_depth(NAME, layer_idx, num_hidden_layers)
        hidden_ratio = 4 if hidden_ratio is None else hidden_ratio
        if not isinstance(hidden_ratio, (int, float)) or not 0 < hidden_ratio < float("inf"):
            raise value_error(NAME, "hidden_ratio", "must be a positive number", hidden_ratio)
        intermediate_size = inner_size(hidden_size, hidden_ratio, intermediate_size)
        check_positive(NAME, intermediate_size=intermediate_size)
        if hidden_act not in ACTIVATIONS:
            raise value_error(NAME, "hidden_act", f"must be one of {', '.join(ACTIVATIONS)}", hidden_act)
        self.hidden_size, self.hidden_ratio, self.intermediate_size = hidden_size, hidden_ratio, intermediate_size
        self.hidden_act, self.act_fn = hidden_act, ACTIVATIONS[hidden_act]
        self.layer_idx, self.num_hidden_layers = layer_idx, num_hidden_layers
        self.x_k = nn.Parameter(torch.empty(hidden_size, device=device, dtype=dtype))
        self.key = nn.Linear(hidden_size, intermediate_size, bias=False, device=device, dtype=dtype)
        self.value = nn.Linear(intermediate_size, hidden_size, bias=False, device=device, dtype=dtype)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set and draw all parameters as the official model does."""
        index = self.layer_idx or 0
        falling = 1.0 - index / (self.num_hidden_layers or index + 1)
        if self.x_k.device.type != "meta":
            place = torch.arange(self.hidden_size, dtype=torch.float64, device="cpu") / self.hidden_size
            self.x_k.copy_(1 - place ** (falling**4))
        orthogonal_(self.key.weight)
        nn.init.zeros_(self.value.weight)

    def extra_repr(self) -> str:
        """Sizes and settings, for ``repr``."""
        parts = ("hidden_size", "intermediate_size", "hidden_act", "layer_idx", "num_hidden_layers")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in parts)

    def forward(
        self,
        x: torch.Tensor,
        attention_mask: Optional[torch.Tensor] = None,
        state: Optional[Any] = None,
        cu_seqlens: Optional[torch.Tensor] = None,
        use_cache: Optional[bool] = True,
        **kwargs: Any,
    ) -> Tuple[torch.Tensor, Optional[Any]]:
        """Mix channels.

        Args:
            x: ``[B, T, D]``.
            attention_mask: ``[B, T]`` of 0 and 1, or longer (its last T columns count); pads may be anywhere.
            state: a `Cache` to continue from; its ``ffn_state [N, D]`` is replaced, no token is counted.
            cu_seqlens: ``[N + 1]`` int offsets of N sequences packed in one row; the mask is then ignored.
            use_cache: write to ``state``; False reads it only.

        Returns:
            ``[B, T, D]``, zero at padding, and ``state``.

        Raises:
            ValueError: an input, mask or offsets of the wrong shape, dtype or device.
            CacheError: a cache of another layer or batch.
            TypeError: an unknown keyword.
        """
        refuse_unknown(f"{NAME}.forward", kwargs, FORWARD, INERT)
        check_hidden_states(NAME, x, self.hidden_size, self.key.weight)
        rows = read_rows(NAME, x, attention_mask, cu_seqlens)
        x, cu_seqlens = rows.pack(x), rows.cu_seqlens
        last = get_layer_cache(self, state)
        before = last.get("ffn_state") if last else None
        if before is not None:
            check_state(NAME, "ffn_state", before, (("batch", rows.sequences), ("channels", self.hidden_size)), x)
        before = rows.widen(before)
        delta, after = token_shift(x, cu_seqlens, cache=before, output_cache=True)
        if state is not None and use_cache:
            update_layer_cache(self, state, ffn_state=rows.narrow(after), offset=0)
        y = self.value(self.act_fn(self.key(x.addcmul(delta, self.x_k))))
        return rows.unpack(y), state
