"""Qwen3-Next's recurrent layer in training: projection, convolution and rule without the copies between them.

The projection gives, for each key head, a query, a key, and the values and gates of its value heads, side by side.
transformers sorts that by kind before the convolution, and autograd sorts the gradients back. A depthwise convolution
does not depend on the order of its channels, so here it reads them in place.
"""

import ast
import functools
import hashlib
import inspect
import sys
import textwrap
from typing import Any, Callable, Mapping, Optional, Tuple

import torch
import torch.nn.functional as F

from myfla.integrations.hf_rules import chunk_gated_delta_rule
from myfla.integrations.packing import packed_offsets
from myfla.modules.blocks import blocks
from myfla.modules.conv_taps import add_taps, add_x
from myfla.utils.autograd import backward_through
from myfla.utils.dtypes import autocast_enabled
from myfla.utils.tracing import tracing

LAYER = "GatedDeltaNet"
"""Classes whose names end so may be the layer."""

METHODS = ("forward", "fix_query_key_value_ordering")
KNOWN = frozenset({"51a3160156883e3e", "dc835ecde9135848", "7411e06f25ee0b3a"})
"""Digests of the layer's methods in transformers 5.17, 5.23 and 5.24, whose training step `forward` here is."""

PLACES = ("cache", "attention_mask")
"""What the layer is given by position after its input."""

CACHES = ("cache", "cache_params", "past_key_values")
"""The names of its cache: the first from 5.24 on, which takes the others still."""


def is_known(layer: type) -> bool:
    """Whether a class of transformers computes what `forward` here does, to the letter."""
    return _digest(layer) in KNOWN


def sorts_by_kind(layer: type) -> bool:
    """Whether a class of transformers has such a layer's parts at all, in any version."""
    return layer.__name__.endswith(LAYER) and all(name in vars(layer) for name in METHODS)


def _digest(layer: type) -> str:
    """Of the methods' code, without comments and layout."""
    if not sorts_by_kind(layer):
        return ""
    try:
        sources = [textwrap.dedent(inspect.getsource(inspect.unwrap(vars(layer)[name]))) for name in METHODS]
    except (OSError, TypeError):  # replaced by code that is in no file
        return ""
    plain = "\n".join(ast.unparse(ast.parse(source)) for source in sources)
    return hashlib.sha256(plain.encode("utf-8")).hexdigest()[:16]


def forward(before: Callable, layer: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """The layer's forward pass; all but the plain training step is left to ``before``.

    Args:
        before: what transformers has.
        layer: its module.
        hidden_states: ``[B, T, hidden_size]``.
        *args, **kwargs: its cache, by any name that transformers ever gave it, its mask ``[B, T]``, and all keywords
            of the model's forward.

    Returns:
        ``[B, T, hidden_size]``.
    """
    given = {**dict(zip(PLACES, args)), **kwargs}
    if len(args) > len(PLACES) or _keeps_states(given) or not _takes(layer, hidden_states, given):
        return before(layer, hidden_states, *args, **kwargs)
    masked = sys.modules[type(layer).__module__].apply_mask_to_padding_states
    x = masked(hidden_states, given.get("attention_mask"))
    batch, time = x.shape[:2]
    heads, more = layer.num_k_heads, layer.num_v_heads // layer.num_k_heads
    mixed = layer.in_proj_qkvz(x).view(batch, time, heads, -1)
    b, a = layer.in_proj_ba(x).view(batch, time, heads, 2 * more).split(more, -1)
    q, k, v, z = GroupedConvolution.apply(mixed, layer.conv1d.weight.squeeze(1), layer.head_k_dim)
    beta = b.reshape(batch, time, -1).sigmoid()
    g = -layer.A_log.float().exp() * F.softplus(a.reshape(batch, time, -1).float() + layer.dt_bias)
    values = (batch, time, layer.num_v_heads, layer.head_v_dim)
    o = chunk_gated_delta_rule(q, k, v.view(values), g=g, beta=beta, use_qk_l2norm_in_kernel=True)[0]
    return layer.out_proj(layer.norm(o, z.view(values)).view(batch, time, -1))


def _keeps_states(given: Mapping[str, Any]) -> bool:
    """Whether there is a cache, under a known name or any other."""
    named = any(given.get(name) is not None for name in CACHES)
    return named or any(hasattr(x, "get_seq_length") for x in given.values())


def _offloaded(layer: Any) -> bool:
    """Whether accelerate brings some of the layer's weights when a module is called: until then they are elsewhere."""
    return any(hasattr(module, "_hf_hook") for module in layer.modules())


def _takes(layer: Any, x: torch.Tensor, kwargs: Mapping[str, Any]) -> bool:
    convolution = layer.conv1d
    return (
        torch.is_grad_enabled() and not tracing() and packed_offsets(kwargs) is None
        and x.dtype in (torch.float32, torch.float64) and x.dtype == layer.in_proj_qkvz.weight.dtype
        and not autocast_enabled(x.device.type)
        and layer.activation in ("silu", "swish") and convolution.bias is None
        and not convolution._forward_hooks and not convolution._forward_pre_hooks and not _offloaded(layer)
    )  # fmt: skip


class GroupedConvolution(torch.autograd.Function):
    """``silu(conv(x))`` of queries, keys and values that lie group by group, taken apart; gates come as they are.

    Legend: B sequences, T tokens, G key heads, P channels of a group: K of its query, K of its key, then as many of its
    values as of its gates.
    """

    @staticmethod
    def forward(ctx: Any, mixed: torch.Tensor, weight: torch.Tensor, key: int) -> Tuple[torch.Tensor, ...]:
        """
        Args:
            mixed: ``[B, T, G, P]``.
            weight: ``[D, W]`` in transformers' order: all queries, all keys, all values.
            key: K.

        Returns:
            queries and keys ``[B, T, G, K]``, values and gates ``[B, T, G, (P - 2K) / 2]``.
        """
        B, T, G, P = mixed.shape
        sizes = (key, key, P // 2 - key, P // 2 - key)
        taps = _grouped_taps(weight, G, sizes)
        x, z = mixed.split((sum(sizes[:3]), sizes[3]), -1)
        before = mixed.new_empty(x.shape)
        out = tuple(mixed.new_empty(B, T, G, size) for size in sizes)
        out[3].copy_(z)
        for rows, start, end in blocks(B, T, G * x.shape[3], mixed.device):
            part = before[rows, start:end]
            torch.mul(x[rows, start:end], taps[-1], out=part)
            for s in range(1, min(taps.shape[0], end)):
                first = max(start, s)
                part[:, first - start :].addcmul_(x[rows, first - s : end - s], taps[-1 - s])
            for one, own in zip(part.split(sizes[:3], -1), out):
                torch.ops.aten.silu.out(one, out=own[rows, start:end])
        ctx.save_for_backward(mixed, weight, before)
        ctx.sizes = sizes
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Tuple[Optional[torch.Tensor], ...]:
        mixed, weight, before = ctx.saved_tensors
        sizes, needs = ctx.sizes, ctx.needs_input_grad[:2]
        if torch.is_grad_enabled():
            return (*backward_through(functools.partial(_formula, sizes=sizes), [mixed, weight], needs, grads), None)
        (B, T, G, _), channels = mixed.shape, sum(sizes[:3])
        taps, x = _grouped_taps(weight, G, sizes), mixed[..., :channels]
        found, dtaps = torch.empty_like(mixed), torch.zeros_like(taps)
        found[..., channels:].copy_(grads[3])
        window = product = mixed.new_empty(0)
        for rows, start, end in blocks(B, T, G * channels, mixed.device):
            n = end - start
            if end == T:
                window = mixed.new_zeros(rows.stop - rows.start, n + len(taps) - 1, G, channels)
                product = torch.empty_like(window)
            else:
                window[:, n : n + len(taps) - 1] = window[:, : len(taps) - 1].clone()
            parts = zip(grads, before[rows, start:end].split(sizes[:3], -1), window[:, :n].split(sizes[:3], -1))
            for dy, z, dz in parts:
                torch.ops.aten.silu_backward.grad_input(dy[rows, start:end], z, grad_input=dz)
            add_x(found[rows, start:end, :, :channels], window, taps, T - start)
            add_taps(dtaps, window, x[rows], start, end, product)
        return found, _ungrouped(dtaps, sizes), None


def _grouped_taps(weight: torch.Tensor, groups: int, sizes: Tuple[int, ...]) -> torch.Tensor:
    """``[W, G, K + K + V]``."""
    parts = weight.split([groups * size for size in sizes[:3]])
    return torch.cat([part.view(groups, -1, weight.shape[1]) for part in parts], 1).permute(2, 0, 1).contiguous()


def _ungrouped(dtaps: torch.Tensor, sizes: Tuple[int, ...]) -> torch.Tensor:
    return torch.cat([part.flatten(1) for part in dtaps.split(sizes[:3], -1)], 1).t()


def _formula(mixed: torch.Tensor, weight: torch.Tensor, sizes: Tuple[int, ...]) -> Tuple[torch.Tensor, ...]:
    """The forward pass in plain operations, for second derivatives."""
    taps, T = _grouped_taps(weight, mixed.shape[2], sizes), mixed.shape[1]
    x, z = mixed.split((sum(sizes[:3]), sizes[3]), -1)
    past = F.pad(x, (0, 0, 0, 0, len(taps) - 1, 0))
    y = F.silu(sum(past[:, s : s + T] * tap for s, tap in enumerate(taps)))
    return (*y.split(sizes[:3], -1), z)
