"""Everything that keeps a state, behind one call, so that one property is one test for all.

Ops: ``op(inputs, state, cu) -> (o, state)``. Layers and encoders: ``subject(x, cache, mask, cu) -> (y, cache)``, with
all parameters away from their start.
"""

import dataclasses
from typing import Any, Callable, Dict, List, Optional

import torch

import family
import family_layers
import gdn_layer
import rwkv7_layers
from myfla.models.rwkv7.feed_forward import RWKV7FeedForward
from myfla.models.utils import Cache
from myfla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
from myfla.ops.rwkv7 import chunk_rwkv7, fused_recurrent_rwkv7
from small_encoders import FAMILY, HEADED, small, wake

FIELDS = ("recurrent_state", "conv_state", "ffn_state")


@dataclasses.dataclass
class Op:
    """An op; ``exact``: any split gives the same bits; ``heads``: of its states."""

    function: Callable
    exact: bool
    inputs: Callable
    heads: int = 4

    def __call__(self, given, state=None, cu=None):
        return self.function(**given, scale=0.5, initial_state=state, output_final_state=True, cu_seqlens=cu)


@dataclasses.dataclass
class MemberOp:
    """A form of one of `family.MEMBERS`, as `Op`; the steps of a token lie beside each other, ``[B, T, n, ...]``."""

    member: str
    form: str
    heads: int = 4

    def __post_init__(self):
        self.steps = family.MEMBERS[self.member].steps
        self.stepped = ("k", "v", "beta") if self.steps > 1 else ()

    @property
    def exact(self):  # of ssd, PyTorch makes the time steps, whose last bits depend on where in memory a number lies
        return self.form == "recurrent" and self.member != "ssd"

    def inputs(self, batch, tokens, dtype=torch.float32, seed=0, decay=1.0):
        """As `gdn_inputs`."""
        made = family.inputs(self.member, batch, tokens, 2, 4, 8, 6, decay, dtype, seed)
        return {name: x.view(batch, tokens, self.steps, *x.shape[2:]) if name in self.stepped else x
                for name, x in made.items()}

    def __call__(self, given, state=None, cu=None):
        flat = {name: x.flatten(1, 2) if name in self.stepped else x for name, x in given.items()}
        return family.run(self.member, self.form, flat, initial_state=state, cu_seqlens=cu)


def _generator(seed):
    return torch.Generator().manual_seed(seed)


def gdn_inputs(batch, tokens, dtype=torch.float32, seed=0, decay=1.0) -> Dict[str, torch.Tensor]:
    """Token inputs ``[B, T, ...]`` of two heads, four value heads, K = 8, V = 6; decays down to ``-decay`` a step."""
    draw = _generator(seed)
    q, k = (torch.randn(batch, tokens, 2, 8, generator=draw, dtype=torch.float64) for _ in "qk")
    v = torch.randn(batch, tokens, 4, 6, generator=draw, dtype=torch.float64)
    g, beta = (torch.rand(batch, tokens, 4, generator=draw, dtype=torch.float64) for _ in "gb")
    unit = torch.nn.functional.normalize
    given = dict(q=unit(q, dim=-1), k=unit(k, dim=-1), v=v, g=-decay * g, beta=2 * beta)
    return {name: t.to(dtype) for name, t in given.items()}


def rwkv7_inputs(batch, tokens, dtype=torch.float32, seed=0, decay=1.0) -> Dict[str, torch.Tensor]:
    """As `gdn_inputs`, for two heads, K = 8, V = 6."""
    draw = _generator(seed)
    r, k, kk = (torch.randn(batch, tokens, 2, 8, generator=draw, dtype=torch.float64) for _ in range(3))
    v = torch.randn(batch, tokens, 2, 6, generator=draw, dtype=torch.float64)
    w, a = (torch.rand(batch, tokens, 2, 8, generator=draw, dtype=torch.float64) for _ in "wa")
    kk = torch.nn.functional.normalize(kk, dim=-1)
    given = dict(r=r, w=-decay * 0.6 * w, k=k, v=v, a=-kk, b=kk * a)
    return {name: t.to(dtype) for name, t in given.items()}


OPS = {
    "gdn_chunk": Op(chunk_gated_delta_rule, False, gdn_inputs),
    "gdn_recurrent": Op(fused_recurrent_gated_delta_rule, True, gdn_inputs),
    "rwkv7_chunk": Op(chunk_rwkv7, False, rwkv7_inputs, 2),
    "rwkv7_recurrent": Op(fused_recurrent_rwkv7, True, rwkv7_inputs, 2),
}
MEMBERS = {f"{name}_{form}": MemberOp(name, form) for name in family.MEMBERS for form in ("chunk", "recurrent")}
EVERY = {**OPS, **MEMBERS}
#: What makes a token leave the state as it is, bit for bit.
_NOTHING = dict(q=0.0, k=0.0, v=0.0, g=0.0, beta=0.0, p=0.0, b=0.0, w=0.0)
IDENTITY = {"gdn": _NOTHING, "rwkv7": dict(w=0.0, k=0.0, v=0.0, a=0.0, b=0.0, r=0.0),
            **dict.fromkeys(family.MEMBERS, _NOTHING), "ssd": {**_NOTHING, "dt": -1e4, "z": 0.0}}


def op_state(name, rows, dtype=torch.float32, seed=9):
    """Random initial states ``[N, heads, K, V]``."""
    return torch.randn(rows, EVERY[name].heads, 8, 6, generator=_generator(seed), dtype=torch.float64).to(dtype)


@dataclasses.dataclass
class Subject:
    """A layer or an encoder: ``subject(x, cache, mask, cu) -> (y, cache)``; the cache that was given stays as it is.

    Attributes:
        width: of x.
        slot: number of the cache's layer that counts tokens; None where none does.
    """

    width: int
    call: Callable
    module: Any
    dtype: torch.dtype
    slot: Optional[int] = 0

    def data(self, batch, tokens, seed=0):
        draw = _generator(1000 * seed + batch)
        return torch.randn(batch, tokens, self.width, generator=draw, dtype=torch.float64).to(self.dtype)

    def __call__(self, x, cache=None, mask=None, cu=None):
        return self.call(x, Cache() if cache is None else cache.fork(), mask, cu)

    def lengths(self, cache):
        return cache.get_lengths(self.slot).tolist()

    @property
    def parameters(self) -> List[torch.Tensor]:
        return list(self.module.parameters())


def _gdn(dtype, **flags):
    layer = gdn_layer.build(dtype, **flags).eval()

    def call(x, cache, mask, cu):
        y, _, cache = layer(x, attention_mask=mask, past_key_values=cache, use_cache=True, cu_seqlens=cu)
        return y, cache

    return Subject(gdn_layer.D, call, layer, dtype)


def _family(dtype, name):
    layer = family_layers.build(name, dtype)

    def call(x, cache, mask, cu):
        y, _, cache = layer(x, attention_mask=mask, past_key_values=cache, use_cache=True, cu_seqlens=cu)
        return y, cache

    return Subject(family_layers.D, call, layer, dtype)


def _rwkv7(dtype, index):
    layer = rwkv7_layers.build(index, dtype=dtype).eval()

    def call(x, cache, mask, cu):
        first = 0.5 * x.roll(1, dims=-1) if index else None  # v_first: any function of the token alone
        y, _, cache, _ = layer(x, attention_mask=mask, past_key_values=cache, use_cache=True, v_first=first,
                               cu_seqlens=cu)
        return y, cache

    return Subject(24, call, layer, dtype, index)


def _feed_forward(dtype):
    block = wake(RWKV7FeedForward(8, layer_idx=0, num_hidden_layers=2, dtype=dtype))
    return Subject(8, lambda x, cache, mask, cu: block(x, mask, cache, cu), block, dtype, None)


def _encoder(name, dtype, **changes):
    """In float64 tiny and far from its start; in float32 as in use, for rounding to be what it is in use.

    The norm behind a head divides by the head's own length: with heads of a few channels or with weights of a large
    scale, some token's values nearly cancel and its rounding grows without a bound, in one call as in many.
    """
    return _wrap((small if dtype == torch.float64 else wide_encoder)(name, dtype, **changes))


def wide_encoder(name, dtype, **changes):
    """An encoder of the default width, with weights of the scale that training leaves."""
    heads = {"head_dim": 16} if name in HEADED else {}
    return small(name, dtype, scale=0.1, hidden_size=64, **heads, **changes)


INCEPTION = dict(stem="inception", stem_kernel=9)


def wide_subject(name, dtype):
    """`wide_encoder` as a `Subject`; of `ENCODERS` by their names there."""
    encoder, changes = ("gated_deltanet", INCEPTION) if name == "inception" else (name, {})
    return _wrap(wide_encoder(encoder, dtype, **changes))


def _wrap(encoder):
    dtype = next(encoder.parameters()).dtype

    def call(x, cache, mask, cu):
        out = encoder(x, attention_mask=mask, cu_seqlens=cu, cache=cache)
        return out.hidden, out.cache

    return Subject(3, call, encoder, dtype)


LAYERS: Dict[str, Callable[[torch.dtype], Subject]] = {
    "gdn": lambda dtype: _gdn(dtype, conv_bias=True),
    "gdn_grouped": lambda dtype: _gdn(dtype, num_v_heads=4, expand_v=1.5, allow_neg_eigval=True),
    "gdn_no_conv": lambda dtype: _gdn(dtype, use_short_conv=False, use_gate=False),
    "rwkv7_first": lambda dtype: _rwkv7(dtype, 0),
    "rwkv7_later": lambda dtype: _rwkv7(dtype, 1),
    "rwkv7_ffn": _feed_forward,
    **{name: lambda dtype, name=name: _family(dtype, name) for name in family_layers.ALL},
}
ENCODERS: Dict[str, Callable[[torch.dtype], Subject]] = {
    "gated_deltanet": lambda dtype: _encoder("gated_deltanet", dtype),
    "rwkv7": lambda dtype: _encoder("rwkv7", dtype),
    "lstm": lambda dtype: _encoder("lstm", dtype),
    "inception": lambda dtype: _encoder("gated_deltanet", dtype, **INCEPTION),
}
STRATEGIES: Dict[str, Callable[[torch.dtype], Subject]] = {
    name: lambda dtype, name=name: _encoder(name, dtype) for name in FAMILY}
"""Encoders of the wider family, whose layers are among `LAYERS`."""


def states(cache: Cache, rows: Any = slice(None)) -> List[torch.Tensor]:
    """Every state tensor of a cache, in order; of the given rows."""
    found = []
    for state in cache:
        for field in FIELDS:
            value = None if state is None else state[field]
            found += [] if value is None else list(value) if isinstance(value, tuple) else [value]
    return [t[rows] for t in found]
