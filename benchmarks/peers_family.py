"""The related rules as ``op(*inputs) -> o``, their inputs, and other implementations for a CPU."""

from typing import Callable, Dict, NamedTuple

import torch
import torch.nn.functional as F

from benchmarks.inputs import Tensors, gated_inputs
from benchmarks.peers import OURS, TRANSFORMERS, Op, first, hidden, optional

ATTN_GYM = "attn_gym chunk"
HOUSEHOLDER = 2


class Member(NamedTuple):
    """One member.

    Attributes:
        inputs: by batch, tokens, heads, size of keys and values.
        sides: its implementations by name, ours first.
    """

    inputs: Callable[[int, int, int, int], Tensors]
    sides: Dict[str, Callable[[], Op]]


def _gated(batch: int, tokens: int, heads: int, size: int) -> Tensors:
    """q, k, v ``[B, T, H, K]``, keys and queries of length one; g, beta ``[B, T, H]``."""
    q, k, v, g, beta = gated_inputs(batch, tokens, heads, size, torch.float32, "cpu")
    return F.normalize(q, dim=-1), F.normalize(k, dim=-1), v, g, beta


def _channels(batch: int, tokens: int, heads: int, size: int) -> Tensors:
    """The same with a g for each key channel, as in a new KDA layer."""
    q, k, v, g, beta = _gated(batch, tokens, heads, size)
    return q, k, v, g.unsqueeze(-1) * torch.rand(k.shape, generator=torch.Generator().manual_seed(2)), beta


def _but(make: Callable[..., Tensors], *left: int) -> Callable[..., Tensors]:
    return lambda *sizes: tuple(x for i, x in enumerate(make(*sizes)) if i not in left)


def _comba(*sizes: int) -> Tensors:
    q, k, v, g, beta = _gated(*sizes)
    return q, k, v, 0.9 * k, g, beta


def _gdn2(*sizes: int) -> Tensors:
    q, k, v, g, _ = _channels(*sizes)
    b, w = (torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) for x in (k, v))
    return q, k, v, g, b, w


def _product(batch: int, tokens: int, heads: int, size: int) -> Tensors:
    q, _, _, g, _ = _gated(batch, tokens, heads, size)
    _, k, v, _, beta = _gated(batch, HOUSEHOLDER * tokens, heads, size)
    return q, k, v, g, beta


def _ssd(*sizes: int) -> Tensors:
    """x, dt, A, B, C."""
    q, k, v, g, _ = _gated(*sizes)
    return v, g.abs(), -torch.ones(v.shape[2]), k, q


def _ours(package: str, name: str, **options: object) -> Callable[[], Op]:
    def load() -> Op:
        op = getattr(optional(f"myfla.ops.{package}"), name)
        return lambda *x: op(*x, **options, backend="torch")[0]

    return load


def _transformers() -> Op:
    with hidden("fla", "causal_conv1d"):
        module = optional("transformers.models.kimi_linear.modeling_kimi_linear")
    optional("transformers.utils.logging").set_verbosity_error()
    return lambda *x: module.chunk_kimi_delta_attention(*x)[0]


def _attn_gym() -> Op:
    op = optional("attn_gym.linear.kda").chunk_kda
    return lambda *x: first(op(*x, impl="reference"))


FAMILY: Dict[str, Member] = {
    "KDA": Member(_channels, {
        OURS: _ours("kda", "chunk_kda"), TRANSFORMERS: _transformers, ATTN_GYM: _attn_gym}),
    "DeltaNet": Member(_but(_gated, 3), {OURS: _ours("delta_rule", "chunk_delta_rule")}),
    "GLA": Member(_but(_channels, 4), {OURS: _ours("gla", "chunk_gla")}),
    "simple GLA": Member(_but(_gated, 4), {OURS: _ours("simple_gla", "chunk_simple_gla")}),
    "Mamba-2": Member(_ssd, {OURS: _ours("ssd", "chunk_ssd")}),
    "Gated DeltaProduct, 2 steps": Member(_product, {
        OURS: _ours("gated_delta_product", "chunk_gated_delta_product", num_householder=HOUSEHOLDER)}),
    "Comba": Member(_comba, {OURS: _ours("comba", "chunk_comba")}),
    "GDN-2": Member(_gdn2, {OURS: _ours("gdn2", "chunk_gdn2")}),
}  # fmt: skip
"""By name; the float32 chunk forms in plain PyTorch."""

GATED: Member = Member(_gated, {OURS: _ours("gated_delta_rule", "chunk_gated_delta_rule")})
GOALS: Dict[str, Dict[str, float]] = {
    "KDA": {TRANSFORMERS: 20.0, ATTN_GYM: 5.0}, **{name: {} for name in ("DeltaNet", "GLA", "Mamba-2")},
}
"""Forward and backward at 2 x 512 x 4 x 64: how many times as fast as a side; none is slower than the gated rule."""
