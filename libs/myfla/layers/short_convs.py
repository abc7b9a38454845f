"""Queries, keys and values: three projections, each behind a short convolution, or behind its activation alone.

The parts around the rule that all layers of the delta rule's family share: these, the gated norm of the outputs, the
last map.
"""

import warnings
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

import torch
import torch.nn as nn

from myfla.backends import check_backend
from myfla.layers.decay import reset_decay
from myfla.layers.layer_inputs import check_state
from myfla.layers.native_steps import StepGates, conv_layer_step
from myfla.layers.native_training import train_conv_layer
from myfla.layers.projections import project, silu
from myfla.layers.recurrent_layer import LayerCall, RecurrentLayer
from myfla.layers.settings import check_heads, check_settings, expanded
from myfla.layers.training_parts import TrainingGates
from myfla.modules import ShortConvolution
from myfla.modules.convolution import causal_conv1d
from myfla.utils.errors import CacheError, message, refuse_unknown
from myfla.utils.tracing import exporting

__all__ = ["ConvLayer"]

NAMES = ("q", "k", "v")
# Up to this many numbers, one convolution of q, k and v together takes less time than three, in spite of the copy.
FUSED_ON_CPU = 2**18
Parts = Tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class ConvLayer(RecurrentLayer):
    """A `RecurrentLayer` with ``q_proj``, ``k_proj``, ``v_proj`` and ``q_conv1d``, ``k_conv1d``, ``v_conv1d``.

    Attributes:
        expand_v, head_dim, num_heads, key_dim, value_dim: sizes of heads, and of all heads together.
        conv_channels: channels of q, k and v.
        conv_size: taps, W.
        conv_bias: whether the convolutions have one.
        decay_after: the part after which construction draws ``A_log`` and ``dt_bias``, if it has them.
        A_range: see `reset_decay`.
        o_norm, o_proj: norm and map of the outputs; a ``g_proj`` makes the norm's gate.
    """

    expand_v: float
    head_dim: int
    num_heads: int
    key_dim: int
    value_dim: int
    conv_channels: Tuple[int, int, int]
    conv_size: int
    conv_bias: bool
    decay_after: str = "b_proj"
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    q_conv1d: ShortConvolution
    k_conv1d: ShortConvolution
    v_conv1d: ShortConvolution
    A_range: Tuple[float, float] = (0.0, 16.0)
    o_norm: nn.Module
    o_proj: nn.Linear

    def reset_parameters(self) -> None:
        """Draw all parameters again, as construction does; call it after ``to_empty`` on a meta-device layer."""
        children: Dict[str, Any] = dict(self.named_children())
        for name, child in children.items():
            parts: Any = child if isinstance(child, nn.Sequential) else (child,)
            for part in parts:
                part.reset_parameters()
            if name == self.decay_after:
                self._reset_decay()

    def _reset_decay(self) -> None:
        """Draw ``A_log`` and ``dt_bias``, if the layer has them."""
        A_log, dt_bias = getattr(self, "A_log", None), getattr(self, "dt_bias", None)
        if A_log is not None and dt_bias is not None:
            reset_decay(A_log, dt_bias, self.A_range)

    def _settle(
        self, known: Sequence[str], unknown: Mapping[str, Any], flags: Sequence[str] = (),
        choices: Optional[Mapping[str, Sequence[Any]]] = None, inert: Sequence[str] = ("chunk_size", "fuse_norm"),
        **given: Any,
    ) -> None:  # fmt: skip
        """Set, check and complete the arguments of a layer with ``num_heads`` heads of ``head_dim``.

        Args:
            known: the constructor's keywords.
            unknown: keywords that it does not have; ``inert`` ones choose a kernel and not a result.
            flags, choices: further settings that are booleans, or one of a few values.
            **given: the arguments.
        """
        refuse_unknown(self.who, unknown, known, inert)
        given["num_v_heads"] = given["num_heads"] if given["num_v_heads"] is None else given["num_v_heads"]
        given["backend"] = check_backend(self.who, given["backend"])
        for name, value in given.items():
            setattr(self, name, value)
        sizes = ("hidden_size", "head_dim", "num_heads", "num_v_heads", "conv_size")
        check_settings(self.who, self, sizes, ("use_short_conv", "conv_bias", *flags), choices or {})
        check_heads(self.who, self.num_heads, self.num_v_heads)
        self.head_k_dim = self.head_dim
        self.head_v_dim = expanded(self.who, "expand_v", self.expand_v, self.head_dim, "head_dim")
        self.key_dim, self.value_dim = self.num_heads * self.head_k_dim, self.num_v_heads * self.head_v_dim
        self.conv_channels = (self.key_dim, self.key_dim, self.value_dim)

    def _build_qkv(self, new: Any) -> None:
        """Make the projections from ``hidden_size`` to ``conv_channels``."""
        for name, channels in zip(NAMES, self.conv_channels):
            setattr(self, f"{name}_proj", nn.Linear(self.hidden_size, channels, bias=False, **new))

    def _build_convs(self, new: Any, activations: Sequence[Optional[str]] = ("silu",) * 3) -> None:
        """Make the convolutions, or warn that there are none."""
        if not self.use_short_conv:
            warnings.warn(f"{self.who}: use_short_conv=False costs much quality in most tasks", stacklevel=3)
            return
        for name, channels, activation in zip(NAMES, self.conv_channels, activations):
            conv = ShortConvolution(channels, kernel_size=self.conv_size, bias=self.conv_bias, activation=activation,
                                    **new)
            setattr(self, f"{name}_conv1d", conv)

    def _advance(self, x: torch.Tensor, call: LayerCall) -> Tuple[torch.Tensor, Optional[torch.Tensor], Any]:
        trained = train_conv_layer(self, x, call)
        if trained is not None:
            return trained, None, None
        step = conv_layer_step(self, x, call)
        if step is None:
            return super()._advance(x, call)
        y, recurrent_state, conv_state = step
        return project(self.o_proj, y), recurrent_state, conv_state

    def _step_gates(self, x: torch.Tensor) -> Optional[StepGates]:
        """The arguments of the gated delta rule besides q, k and v, for one token in each row ``x [N, 1, D]``; None if
        this layer computes something else between its convolutions and its norm."""
        return None

    def _training_gates(self) -> Optional[TrainingGates]:
        """The maps and parameters of the gates of the gated delta rule or KDA; None if this layer computes something
        else between its convolutions and its norm."""
        return None

    def _qkv(self, x: torch.Tensor, call: LayerCall) -> Tuple[Parts, Any]:
        """q, k and v ``[B, T, channels]`` behind their convolutions, and the convolutions' new states."""
        parts = self._project(x)
        if not self.use_short_conv:
            return self._without_convs(parts), None
        states = (None, None, None) if call.conv_state is None else call.conv_state
        # An exported graph serves all sizes; a choice by size would limit it.
        small = x.is_cuda or exporting() or self._conv_size(x, states) <= FUSED_ON_CPU
        fused = small and self._use_fused_qkv_conv(states, call.keep, call.cu_seqlens)
        return (self._one_conv if fused else self._three_convs)(parts, states, call)

    def _conv_size(self, x: torch.Tensor, states: Any) -> int:
        """Numbers that the three convolutions read."""
        rows = x.shape[0] * x.shape[1] + (0 if states[0] is None else len(states[0]) * self.conv_size)
        return rows * sum(self.conv_channels)

    def _project(self, x: torch.Tensor) -> Parts:
        """q, k and v ``[B, T, channels]``, not yet convolved."""
        return project(self.q_proj, x), project(self.k_proj, x), project(self.v_proj, x)

    def _without_convs(self, parts: Parts) -> Parts:
        q, k, v = parts
        return silu(q), silu(k), silu(v)

    def _use_fused_qkv_conv(self, last_state: Any = None, use_cache: Any = None, cu_seqlens: Any = None) -> bool:
        """Whether the three convolutions can run as one (official name; here states and offsets are no hindrance)."""
        first, *others = convs = self._convs()
        if any(type(c) is not ShortConvolution or c._forward_hooks or c._forward_pre_hooks for c in convs):
            return False
        return all(c.activation == first.activation and c.kernel_size == first.kernel_size for c in others)

    def _three_convs(self, parts: Parts, states: Any, call: LayerCall) -> Any:
        done = [
            conv(part, cache=state, output_final_state=call.keep, cu_seqlens=call.cu_seqlens)
            for conv, part, state in zip(self._convs(), parts, states)
        ]
        return tuple(zip(*done))

    def _one_conv(self, parts: Parts, states: Any, call: LayerCall) -> Any:
        convs = self._convs()
        biases = [conv.bias for conv in convs if conv.bias is not None]
        past = [state for state in states if state is not None]
        mixed, state = causal_conv1d(
            torch.cat(parts, dim=-1),
            weight=torch.cat([conv.weight.squeeze(1) for conv in convs]),
            bias=torch.cat(biases) if biases else None,
            initial_state=torch.cat(past, dim=1) if past else None,
            output_final_state=call.keep, activation=convs[0].activation, cu_seqlens=call.cu_seqlens,
        )  # fmt: skip
        sizes = list(self.conv_channels)
        return mixed.split(sizes, dim=-1), None if state is None else state.split(sizes, dim=1)

    def _output(self, x: torch.Tensor, o: torch.Tensor) -> torch.Tensor:
        gate = getattr(self, "g_proj", None)
        o = self.o_norm(o) if gate is None else self.o_norm(o, project(gate, x).view(o.shape))
        return project(self.o_proj, o.reshape(*o.shape[:2], o.shape[2] * o.shape[3]))

    def _convs(self) -> Any:
        return self.q_conv1d, self.k_conv1d, self.v_conv1d

    def _check_conv_state(self, conv: Any, sequences: int, x: torch.Tensor) -> Any:
        if not self.use_short_conv or not isinstance(conv, (tuple, list)) or len(conv) != 3:
            rule = "must be the states of q, k and v" if self.use_short_conv else "must be None without convolutions"
            got = f"{len(conv)} states" if isinstance(conv, (tuple, list)) else type(conv).__name__
            hint = "the cache belongs to a layer with other settings"
            raise CacheError(message(self.who, "conv_state", rule, got, hint))
        for name, tensor, size in zip(NAMES, conv, self.conv_channels):
            taps = (("batch", sequences), ("channels", size), ("taps", self.conv_size))
            check_state(self.who, f"conv_state of {name}", tensor, taps, x)
        return tuple(conv)
