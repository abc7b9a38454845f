"""The causal convolution and the gated norm as models of transformers call them, on this package's modules.

transformers lays the convolution's input out as ``[B, D, T]``, hands over all keywords of the model's forward, and
keeps the convolution's state in place.
"""

from typing import Any, Callable, Dict, Optional, Tuple, cast

import torch
import torch.nn.functional as F

from myfla.integrations.packing import packed_offsets
from myfla.modules.convolution import causal_conv1d
from myfla.modules.convolution import causal_conv1d_update as conv_step
from myfla.modules.fused_norm_gate import rms_norm_gated as norm_op
from myfla.modules.layernorm import rms_norm
from myfla.modules.layernorm_gated import rmsnorm_fn
from myfla.utils.errors import value_error

# Arguments of the official convolution that change its result and that no model passes.
_UNSUPPORTED = ("initial_states", "return_final_states", "final_states_out", "cache_seqlens", "conv_state_indices")


def causal_conv1d_fn(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional[torch.Tensor] = None,
    activation: Optional[str] = None,
    **kwargs: Any,
) -> torch.Tensor:
    """Causal depthwise convolution of whole sequences.

    Args:
        x: ``[B, D, T]``.
        weight: ``[D, W]``.
        bias: ``[D]``.
        activation: a name that transformers knows, or None.
        **kwargs: ``cu_seqlens``, ``cu_seq_lens_q`` or ``seq_idx [B, L]`` for packed sequences: no window reaches
            from one into another. If they speak of the last L tokens only, those before belong to the first
            sequence. Other keywords are passed over.

    Returns:
        ``[B, D, T]`` in the dtype of x.

    Raises:
        ValueError: an option of the official function that is not available here.

    Example:
        >>> x, weight = torch.ones(1, 2, 4), torch.ones(2, 3)
        >>> causal_conv1d_fn(x, weight, seq_idx=torch.tensor([[0, 0, 0, 1]]))[0, 0].tolist()
        [1.0, 2.0, 3.0, 1.0]
    """
    _refuse("causal_conv1d_fn", kwargs)
    tokens = x.transpose(1, 2)
    offsets = _reaching_back(packed_offsets(kwargs), tokens)
    rows = tokens if offsets is None else tokens.reshape(1, -1, tokens.shape[2])
    fused, after = _activation(activation)
    y = causal_conv1d(rows, weight, bias, activation=fused, cu_seqlens=offsets)[0]
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
        Shaped as x, in its dtype.

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
    old = conv_state.clone() if torch.is_grad_enabled() else conv_state  # autograd keeps it, and it is written below
    if x.dim() == 3 and x.shape[2] == 1 and width == length:
        y, state = conv_step(x.transpose(1, 2), old, weight=weight, bias=bias, activation=fused)
        conv_state.copy_(state)
        return after(y).transpose(1, 2)
    new = x.unsqueeze(2) if x.dim() == 2 else x
    past = F.pad(old, (max(width - length, 0), 0))[:, :, -width:]
    y = causal_conv1d(new.transpose(1, 2), weight, bias, initial_state=past, activation=fused)[0]
    conv_state.copy_(torch.cat([old, new.to(old.dtype)], -1)[:, :, -length:])
    return after(y).transpose(1, 2).reshape(x.shape)


def rms_norm_gated(layer: Any, hidden_states: torch.Tensor, gate: Any = None) -> torch.Tensor:
    """The forward of transformers' norm with an output gate, which stands between the rule and the projection out.

    Args:
        layer: has ``weight``, ``variance_epsilon`` and ``activation``, the gate's; Mamba-2's has none of
            the last, but perhaps ``group_size`` or ``n_groups``, and ``norm_before_gate``.
        hidden_states: ``[..., D]``.
        gate: the same; Mamba-2's norm also goes without.

    Returns:
        ``[..., D]`` in the dtype of ``hidden_states``.
    """
    weight, eps = layer.weight, layer.variance_epsilon
    if not hasattr(layer, "activation"):
        size = getattr(layer, "group_size", hidden_states.shape[-1] // getattr(layer, "n_groups", 1))
        return rmsnorm_fn(
            hidden_states, weight, None, gate, eps, size, norm_before_gate=getattr(layer, "norm_before_gate", False)
        )
    if layer.activation in ("silu", "swish", "sigmoid"):
        return cast(torch.Tensor, norm_op(hidden_states, gate, weight, None, layer.activation, eps=eps))
    from transformers.activations import ACT2FN

    normed = cast(torch.Tensor, rms_norm(hidden_states.float(), weight.float(), None, eps=eps))
    return (normed * ACT2FN[layer.activation](gate.float())).to(hidden_states.dtype)


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
