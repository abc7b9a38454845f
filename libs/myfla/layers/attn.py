"""`Attention`: the softmax attention that hybrid models put between their recurrent layers."""

from typing import Any, NamedTuple, Optional, Tuple

import torch
from torch import nn

from myfla.layers.attn_core import attend, visible
from myfla.layers.layer_inputs import INERT_FORWARD, check_hidden_states, check_positive, check_state, read_layer_state
from myfla.layers.token_rows import TokenRows, read_rows
from myfla.layers.utils import update_layer_cache
from myfla.models.attention_state import append_tokens
from myfla.models.utils import Cache
from myfla.modules.layernorm import RMSNorm
from myfla.modules.rotary import rotate_by_position
from myfla.utils.errors import CacheError, message, refuse_unknown, value_error
from myfla.utils.rows import segments_of
from myfla.utils.tracing import tracing

__all__ = ["Attention"]

NAME = "Attention"
KEYWORDS = (
    "hidden_size", "num_heads", "num_kv_heads", "qkv_bias", "qk_norm", "window_size", "rope_theta",
    "max_position_embeddings", "layer_idx", "device", "dtype",
)  # fmt: skip
FORWARD = (
    "hidden_states", "attention_mask", "past_key_values", "use_cache", "output_attentions", "cu_seqlens",
)  # fmt: skip


class _Places(NamedTuple):
    """Packed tokens as rows that end with them: which token stands at each place, and the place of each token."""

    token: torch.Tensor  # [N, C]
    filled: torch.Tensor  # [N, C] bool
    row: torch.Tensor  # [total]
    column: torch.Tensor  # [total]

    def rows(self, x: torch.Tensor) -> torch.Tensor:
        """``[1, total, ...]`` to ``[N, C, ...]``, zeros where no token is."""
        if x.shape[1] == 0:
            return x.new_zeros(self.filled.shape + x.shape[2:])
        filled = self.filled.view(*self.filled.shape, *(1,) * (x.dim() - 2))
        return torch.where(filled, x[0][self.token], x.new_zeros(()))

    def tokens(self, x: torch.Tensor) -> torch.Tensor:
        """The inverse."""
        return x[self.row, self.column].unsqueeze(0)


class Attention(nn.Module):
    """Causal softmax attention with rotary positions, with the parameters and cache protocol of fla 0.6.0's layer.

    ``o = softmax(rotate(q) rotate(k)^T / sqrt(D)) v`` for each head. A token's position is the number of real tokens
    of its sequence before it, wherever pads stand.

    Args:
        hidden_size: channels in and out.
        num_heads: query heads; ``hidden_size / num_heads`` is the head size D, which must be even.
        num_kv_heads: heads of keys and values, a divisor of ``num_heads``, which is the default.
        qkv_bias: biases of the three projections in.
        qk_norm: root-mean-square norms of queries and keys, head by head.
        window_size: how many tokens each one sees, itself included; None for all before it.
        rope_theta: base of the rotations.
        max_position_embeddings: in fla the size of a table; there is none here.
        layer_idx: the layer's slot in a cache, which holds ``attn_state``: keys and values ``[N, S, kv heads * D]``.
        device, dtype: of the parameters.

    Raises:
        ValueError: an argument out of range, or sizes that do not fit each other.
        TypeError: an unknown keyword.

    Example:
        >>> layer = Attention(hidden_size=32, num_heads=4, num_kv_heads=2)
        >>> layer(torch.randn(2, 10, 32))[0].shape
        torch.Size([2, 10, 32])
    """

    def __init__(
        self,
        hidden_size: int = 2048,
        num_heads: int = 32,
        num_kv_heads: Optional[int] = None,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        window_size: Optional[int] = None,
        rope_theta: Optional[float] = 10000.0,
        max_position_embeddings: Optional[int] = None,
        layer_idx: Optional[int] = None,
        *,
        device: Any = None,
        dtype: Optional[torch.dtype] = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        refuse_unknown(NAME, kwargs, KEYWORDS)
        num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
        rope_theta = 10000.0 if rope_theta is None else rope_theta
        check_positive(NAME, hidden_size=hidden_size, num_heads=num_heads, num_kv_heads=num_kv_heads)
        if window_size is not None:
            check_positive(NAME, window_size=window_size)
        if num_heads % num_kv_heads:
            raise value_error(NAME, "num_kv_heads", f"must divide num_heads={num_heads}", num_kv_heads)
        if hidden_size % (2 * num_heads):
            rule = f"must make heads of an even size from hidden_size={hidden_size}"
            raise value_error(NAME, "num_heads", rule, num_heads)
        self.hidden_size, self.num_heads, self.num_kv_heads = hidden_size, num_heads, num_kv_heads
        self.num_kv_groups, self.head_dim = num_heads // num_kv_heads, hidden_size // num_heads
        self.kv_dim, self.qkv_bias, self.qk_norm = num_kv_heads * self.head_dim, qkv_bias, qk_norm
        self.window_size, self.rope_theta, self.layer_idx = window_size, float(rope_theta), layer_idx
        self.max_position_embeddings = max_position_embeddings
        new = {"device": device, "dtype": dtype}
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=qkv_bias, **new)
        self.k_proj = nn.Linear(hidden_size, self.kv_dim, bias=qkv_bias, **new)
        self.v_proj = nn.Linear(hidden_size, self.kv_dim, bias=qkv_bias, **new)
        self.o_proj = nn.Linear(hidden_size, hidden_size, bias=False, **new)
        if qk_norm:
            wide = torch.float64 if dtype == torch.float64 else torch.float32
            self.q_norm = RMSNorm(self.head_dim, device=device, dtype=wide)
            self.k_norm = RMSNorm(self.head_dim, device=device, dtype=wide)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Optional[torch.Tensor] = None,
        past_key_values: Any = None,
        output_attentions: Optional[bool] = False,
        use_cache: Optional[bool] = False,
        **kwargs: Any,
    ) -> Tuple[torch.Tensor, None, Optional[Any]]:
        """Mix a sequence along time.

        Args:
            hidden_states: ``[B, T, hidden_size]``.
            attention_mask: ``[B, T]`` of 0 and 1, or longer (its last T columns count). Padding may be anywhere and may
                contain anything, NaN included.
            past_key_values: a `Cache` to continue from. With ``use_cache`` the new keys and values are put into it;
                without, it is read only.
            output_attentions: accepted and ignored.
            use_cache: keep keys and values.
            cu_seqlens: (keyword) ``[N + 1]`` int offsets of N sequences packed in one row; the mask is then ignored.
                Unlike in fla, a cache may have content then.

        Returns:
            ``(y, None, past_key_values)`` with y ``[B, T, hidden_size]``, zero at padding.

        Raises:
            ValueError: an input, mask or offsets of the wrong shape, dtype or device.
            CacheError: a cache of another layer, batch or device.
            TypeError: an unknown keyword.
        """
        cu_seqlens = kwargs.pop("cu_seqlens", None)
        refuse_unknown(f"{NAME}.forward", kwargs, FORWARD, INERT_FORWARD)
        check_hidden_states(NAME, hidden_states, self.hidden_size, getattr(self.q_proj, "weight", None))
        rows = read_rows(NAME, hidden_states, attention_mask, cu_seqlens)
        x, packed = rows.pack(hidden_states), rows.cu_seqlens
        past = self._past(past_key_values, rows.sequences, x)
        seen = past_key_values.get_seq_length(self.layer_idx) if past is not None else 0
        before = self._tokens_before(past_key_values, seen, attention_mask, rows) if past is not None else None
        keep = bool(use_cache) and past_key_values is not None

        q, k, v = self._heads(self.q_proj(x)), self._heads(self.k_proj(x)), self._heads(self.v_proj(x))
        if self.qk_norm:
            q, k = self.q_norm(q).to(x.dtype), self.k_norm(k).to(x.dtype)
        positions = self._positions(x, rows, seen, rows.widen(before))
        q, k = rotate_by_position(q, positions, self.rope_theta), rotate_by_position(k, positions, self.rope_theta)
        places = None if packed is None else _place(packed, x, rows)
        kept = (k, v) if places is None else (places.rows(k), places.rows(v))
        added = None if packed is None else (packed[1:] - packed[:-1]).long().clamp(max=kept[0].shape[1])
        if keep:
            new = rows.narrow(tuple(x.flatten(2) for x in kept))
            self._write_cache(past_key_values, new, None if added is None else added[: rows.sequences])
        if past is None and packed is not None and not tracing(x):
            o = self._one_by_one(q, k, v, packed)
        else:
            past = None if past is None else tuple(self._heads(x) for x in rows.widen(past))
            o = self._attend(q if places is None else places.rows(q), kept, past, rows.widen(before), added)
            o = o if places is None else places.tokens(o)
        return rows.unpack(self.o_proj(o.flatten(2))), None, past_key_values

    def extra_repr(self) -> str:
        """Heads, window and positions, for ``repr``."""
        window = "" if self.window_size is None else f", window_size={self.window_size}"
        return f"num_heads={self.num_heads}, num_kv_heads={self.num_kv_heads}{window}, rope_theta={self.rope_theta:g}"

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:2], x.shape[2] // self.head_dim, self.head_dim)

    def _past(self, cache: Any, sequences: int, x: torch.Tensor) -> Optional[Tuple[torch.Tensor, ...]]:
        """Keys and values of the cache, ``[N, S, kv_dim]``."""
        state = read_layer_state(NAME, self, cache, ("attn_state",))
        found = None if state is None else state.get("attn_state")
        if found is None:
            return None
        if not isinstance(found, (tuple, list)) or len(found) != 2:
            hint = "the cache belongs to another layer or model"
            raise CacheError(message(NAME, "attn_state", "must hold keys and values", type(found).__name__, hint))
        size = found[0].shape[1] if isinstance(found[0], torch.Tensor) and found[0].dim() == 3 else 0
        for name, tensor in zip(("keys", "values"), found):
            check_state(NAME, f"attn_state {name}", tensor,
                        (("batch", sequences), ("length", size), ("channels", self.kv_dim)), x)
        return tuple(tensor.to(x.dtype) for tensor in found)

    def _tokens_before(
        self, cache: Any, seen: int, mask: Optional[torch.Tensor], rows: TokenRows
    ) -> Optional[torch.Tensor]:
        """``[N]`` real tokens before these; None if every position counted was one."""
        if mask is not None and not tracing(mask) and rows.time < mask.shape[1] == seen + rows.time:
            count = mask[:, :seen].sum(1)  # a cache from elsewhere does not know which positions were pads
            return None if bool((count == seen).all()) else count
        layer = cache.layers[self.layer_idx] if isinstance(cache, Cache) and self.layer_idx is not None else None
        return layer.lengths if layer is not None and layer.has_pads else None

    def _positions(
        self, x: torch.Tensor, rows: TokenRows, seen: int, before: Optional[torch.Tensor]
    ) -> torch.Tensor:
        place = torch.arange(x.shape[1], device=x.device)
        before = None if before is None else before.to(x.device)
        if rows.cu_seqlens is None:
            return place + (seen if before is None else before[:, None])
        bounds = rows.cu_seqlens.to(x.device, torch.int64)
        row = segments_of(bounds, x.shape[1]).clamp(max=bounds.shape[0] - 2)
        return (place - bounds[row] + (seen if before is None else before[row]))[None]

    def _one_by_one(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, packed: torch.Tensor) -> torch.Tensor:
        """Sequences without a past: none needs the length of another."""
        parts = [x.split((packed[1:] - packed[:-1]).tolist(), 1) for x in (q, k, v)]
        done = [self._attend(q, (k, v), None, None, None) for q, k, v in zip(*parts) if q.shape[1]]
        return torch.cat(done, 1) if done else q

    def _attend(self, q: torch.Tensor, new: Tuple[torch.Tensor, ...], past: Optional[Tuple[torch.Tensor, ...]],
                before: Optional[torch.Tensor], added: Optional[torch.Tensor]) -> torch.Tensor:
        """Rows of queries with the keys of this call and of the past; ``before`` and ``added`` count real ones."""
        k, v = append_tokens(past, new, added)
        stored, real = k.shape[1] - q.shape[1], None
        if before is not None or added is not None:
            held = torch.full((q.shape[0],), stored, device=q.device)
            held = held if before is None else before.to(q.device).clamp(max=stored)
            real = held + (q.shape[1] if added is None else added.to(q.device))
        return attend(q, k, v, visible(q.shape[1], k.shape[1], real, self.window_size, q.device))

    def _write_cache(self, cache: Any, new: Tuple[torch.Tensor, ...], added: Optional[torch.Tensor]) -> None:
        real = {"lengths": added} if isinstance(cache, Cache) and added is not None else {}
        update_layer_cache(self, cache, attn_state=new, offset=new[0].shape[1],
                           cache_kwargs={"window_size": self.window_size}, **real)


def _place(packed: torch.Tensor, x: torch.Tensor, rows: TokenRows) -> _Places:
    """Places of packed tokens: rows as long as the input's where it was a batch, else as the longest sequence."""
    bounds, total = packed.to(x.device, torch.int64), x.shape[1]
    if rows.indices is not None:
        size = rows.time
    elif tracing(x):
        size = total
    else:
        size = int((bounds[1:] - bounds[:-1]).max()) if len(bounds) > 1 else 0
    token = bounds[1:, None] - size + torch.arange(size, device=x.device)
    row = segments_of(bounds, total).clamp(max=bounds.shape[0] - 2)
    column = (size - bounds[1:][row] + torch.arange(total, device=x.device)).clamp(min=0)
    return _Places(token.clamp(min=0), token >= bounds[:-1, None], row, column)
