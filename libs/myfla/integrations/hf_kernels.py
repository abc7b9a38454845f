"""The four functions that models of transformers call, in transformers' calling convention, on this package's ops.

transformers lays the convolution's input out as ``[B, D, T]``, marks packed sequences with ``seq_idx`` or
``cu_seq_lens_q``, hands every function all keywords of the model's forward, and keeps a convolution's state in
place. The rest is the ops' own.
"""

import inspect
from typing import Any, Callable, Dict, Optional, Tuple

import torch
import torch.nn.functional as F

from myfla.modules.convolution import causal_conv1d as conv_op
from myfla.modules.convolution import causal_conv1d_update as conv_step
from myfla.ops.gated_delta_rule import chunk_gated_delta_rule as chunk_op
from myfla.ops.gated_delta_rule import fused_recurrent_gated_delta_rule as recurrent_op
from myfla.utils.errors import value_error

_OPTIONS = {op: frozenset(inspect.signature(op).parameters) - {"legacy"} for op in (chunk_op, recurrent_op)}
# Arguments of the official convolution that change its result and that no model passes.
_UNSUPPORTED = ("initial_states", "return_final_states", "final_states_out", "cache_seqlens", "conv_state_indices")


def chunk_gated_delta_rule(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs: Any
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """`myfla.ops.gated_delta_rule.chunk_gated_delta_rule` as transformers calls it.

    Args:
        query, key: ``[B, T, H, K]``.
        value: ``[B, T, HV, V]``.
        **kwargs: the op's options, among them ``g`` and ``beta`` ``[B, T, HV]``. Packed sequences come as
            ``cu_seqlens``, or as ``seq_idx [B, T]`` if that is not given. Other keywords belong to other functions
            and are passed over.

    Returns:
        ``[B, T, HV, V]`` in the query's dtype; the final states ``[N, HV, K, V]``, or None.

    Example:
        >>> x, g = torch.ones(1, 3, 1, 2), torch.zeros(1, 3, 1)
        >>> o, state = chunk_gated_delta_rule(x, x, x, g=g, beta=g, output_final_state=True, output_router_logits=False)
        >>> tuple(o.shape), tuple(state.shape)
        ((1, 3, 1, 2), (1, 1, 2, 2))
    """
    return _run(chunk_op, query, key, value, kwargs)


def recurrent_gated_delta_rule(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs: Any
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """`myfla.ops.gated_delta_rule.fused_recurrent_gated_delta_rule`, as `chunk_gated_delta_rule` above.

    Example:
        >>> x, g = torch.ones(1, 1, 1, 2), torch.zeros(1, 1, 1)
        >>> recurrent_gated_delta_rule(x, x, x, g=g, beta=g)[1] is None
        True
    """
    return _run(recurrent_op, query, key, value, kwargs)


def causal_conv1d_fn(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional[torch.Tensor] = None,
    seq_idx: Optional[torch.Tensor] = None,
    cu_seq_lens_q: Optional[torch.Tensor] = None,
    activation: Optional[str] = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Causal depthwise convolution of whole sequences.

    Args:
        x: ``[B, D, T]``.
        weight: ``[D, W]``.
        bias: ``[D]``.
        seq_idx: ``[B, L]``, the number of the sequence that each of the last L tokens belongs to; tokens before
            those continue into the first. No window reaches from one sequence into another.
        cu_seq_lens_q: ``[N + 1]``, the same as offsets, read if ``seq_idx`` is not given; B is 1.
        activation: a name that transformers knows, or None.
        **kwargs: keywords of other functions.

    Returns:
        ``[B, D, T]`` in the number format of x.

    Raises:
        ValueError: an option of the official function that is not available here.

    Example:
        >>> x, weight = torch.ones(1, 2, 4), torch.ones(2, 3)
        >>> causal_conv1d_fn(x, weight, seq_idx=torch.tensor([[0, 0, 0, 1]]))[0, 0].tolist()
        [1.0, 2.0, 3.0, 1.0]
    """
    _refuse("causal_conv1d_fn", kwargs)
    tokens = x.transpose(1, 2)
    offsets = _reaching_back(_offsets(seq_idx, cu_seq_lens_q), tokens)
    rows = tokens if offsets is None else tokens.reshape(1, -1, tokens.shape[2])
    fused, after = _activation(activation)
    y = conv_op(rows, weight, bias, activation=fused, cu_seqlens=offsets)[0]
    return after(y).view(tokens.shape).transpose(1, 2)


def causal_conv1d_update(
    x: torch.Tensor,
    conv_state: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional[torch.Tensor] = None,
    activation: Optional[str] = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Causal depthwise convolution of a few new tokens.

    Args:
        x: ``[B, D, T]``, or ``[B, D]`` for one token.
        conv_state: ``[B, D, L]`` with ``L >= W - 1``, the last L inputs, newest last. Written in place, as
            transformers' cache asks: it hands out its own tensor and does not take another back.
        weight: ``[D, W]``.
        bias: ``[D]``.
        activation: a name that transformers knows, or None.

    Returns:
        Shaped as x, in its number format.

    Raises:
        ValueError: an option of the official function that is not available here.

    Example:
        >>> state = torch.zeros(1, 2, 3)
        >>> causal_conv1d_update(torch.ones(1, 2, 1), state, torch.ones(2, 3)).flatten().tolist()
        [1.0, 1.0]
        >>> state[0, 0].tolist()
        [0.0, 0.0, 1.0]
    """
    _refuse("causal_conv1d_update", kwargs)
    fused, after = _activation(activation)
    width, length = weight.shape[1], conv_state.shape[2]
    if x.dim() == 3 and x.shape[2] == 1 and width == length:
        y, state = conv_step(x.transpose(1, 2), conv_state, weight=weight, bias=bias, activation=fused)
        conv_state.copy_(state)
        return after(y).transpose(1, 2)
    tokens = (x.unsqueeze(2) if x.dim() == 2 else x).transpose(1, 2)
    past = F.pad(conv_state, (max(width - length, 0), 0))[:, :, -width:]
    y = conv_op(tokens, weight, bias, initial_state=past, activation=fused)[0]
    conv_state.copy_(torch.cat([conv_state, tokens.transpose(1, 2).to(conv_state.dtype)], -1)[:, :, -length:])
    return after(y).transpose(1, 2).reshape(x.shape)


def _run(op: Callable, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kwargs: Dict[str, Any]) -> Any:
    options = {name: x for name, x in kwargs.items() if name in _OPTIONS[op]}
    if options.get("cu_seqlens") is None and kwargs.get("seq_idx") is not None:
        options["cu_seqlens"] = _offsets(kwargs["seq_idx"], None)
    return op(query, key, value, **options)


def _offsets(seq_idx: Optional[torch.Tensor], cu_seq_lens: Optional[torch.Tensor]) -> Optional[torch.Tensor]:
    """Offsets ``[N + 1]`` of packed sequences; the rows of a batch lie one after another."""
    if seq_idx is None:
        return cu_seq_lens
    starts = torch.ones_like(seq_idx, dtype=torch.bool)
    starts[:, 1:] = seq_idx[:, 1:] != seq_idx[:, :-1]
    starts = starts.flatten().nonzero().flatten()
    return torch.cat([starts, starts.new_tensor([seq_idx.numel()])])


def _reaching_back(offsets: Optional[torch.Tensor], tokens: torch.Tensor) -> Optional[torch.Tensor]:
    """The cache may have put earlier tokens, or zeros, before a row: they belong to its first sequence."""
    if offsets is None or tokens.shape[0] != 1:
        return offsets
    before = tokens.shape[1] - int(offsets[-1])
    return torch.cat([offsets[:1], offsets[1:] + before]) if before > 0 else offsets


def _activation(name: Optional[str]) -> Tuple[Optional[str], Callable[[torch.Tensor], torch.Tensor]]:
    """What the convolution applies by itself, and what is left to do after it."""
    if name in (None, "silu", "swish"):
        return name, lambda y: y
    from transformers.activations import ACT2FN

    return None, ACT2FN[name]


def _refuse(who: str, kwargs: Dict[str, Any]) -> None:
    for name in _UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise value_error(who, name, "is not available here", type(kwargs[name]).__name__, "leave it out")
