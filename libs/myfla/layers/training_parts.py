"""The parts of a layer that one function computes under autograd (`myfla.layers.native_training`): which they are, and
whether they are as the layer was built."""

from typing import Any, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import nn

from myfla.layers.projections import is_free
from myfla.modules import FusedRMSNormGated, RMSNorm, ShortConvolution
from myfla.utils.native import are_dense

__all__ = ["Parts", "Settings", "TrainingGates", "flat", "heads_of", "read_parts", "unflat"]


class TrainingGates(NamedTuple):
    """The gates of a layer with the gated delta rule.

    Attributes:
        decay: the map of the input to g before its activation; None: there is no decay.
        beta: the map of the input to beta before its sigmoid.
        A_log, dt_bias: ``[HV]``, with a decay.
        beta_scale: the write strength is this times the sigmoid, 1 or 2.
    """

    decay: Any
    beta: Any
    A_log: Optional[torch.Tensor]
    dt_bias: Optional[torch.Tensor]
    beta_scale: int


class Settings(NamedTuple):
    """What is not a tensor, and where in the joint result of the projections ``y [B, T, N]`` each of them lies: q, k,
    v, the output gate, g and beta, one after another."""

    heads: int
    value_heads: int
    key: int  # channels of a head
    value: int
    silu: bool  # after the convolutions
    activation: Optional[str]  # of the output gate; None: there is none
    eps: float
    decay: bool
    beta_scale: int
    backend: str

    def before(self, y: torch.Tensor) -> torch.Tensor:
        """q, k and v ``[B, T, channels]`` before their convolutions."""
        return y.narrow(2, 0, 2 * self.heads * self.key + self.value_heads * self.value)

    def qkv(self, x: torch.Tensor) -> List[torch.Tensor]:
        """q, k and v ``[B, T, heads, channels]`` of `before`, or of its convolution."""
        keys = self.heads * self.key
        q, k, v = x.split((keys, keys, self.value_heads * self.value), dim=-1)
        return [heads_of(q, self.heads), heads_of(k, self.heads), heads_of(v, self.value_heads)]

    def gate(self, y: torch.Tensor) -> Optional[torch.Tensor]:
        """The output gate ``[B, T, HV * V]``."""
        values = self.value_heads * self.value
        return None if self.activation is None else y.narrow(2, 2 * self.heads * self.key + values, values)

    def gates(self, y: torch.Tensor) -> Tuple[Optional[torch.Tensor], torch.Tensor]:
        """g, if there is a decay, and beta ``[B, T, HV]``, before their activations."""
        size, values = self.value_heads, self.value_heads * self.value
        at = 2 * self.heads * self.key + (values if self.activation is None else 2 * values)
        return (y.narrow(2, at, size), y.narrow(2, at + size, size)) if self.decay else (None, y.narrow(2, at, size))


class Parts(NamedTuple):
    """The parameters, or their gradients."""

    maps: Tuple[Any, ...]  # of q, k, v, the output gate, g and beta: [N_p, D]
    taps: Tuple[Any, ...]  # three of [D, 1, W]
    biases: Tuple[Any, ...]  # of the convolutions, three of [D], or none
    A_log: Any  # [HV]
    dt_bias: Any  # [HV]
    norm: Any  # [V]
    last: Any  # of the output projection, [D, HV * V]


def flat(parts: Parts, like: Parts) -> List[Any]:
    """All of them in the order of `Parts`, without those that ``like`` lacks."""
    one = [x for x, there in zip(parts[3:6], like[3:6]) if there is not None]
    return [*parts.maps, *parts.taps, *parts.biases, *one, parts.last]


def unflat(like: Sequence[int], given: Sequence[Any]) -> Parts:
    """The inverse of `flat`, where ``like`` has the number of each field."""
    rest = list(given)
    maps, taps, biases = (tuple(rest.pop(0) for _ in range(count)) for count in like[:3])
    A_log, dt_bias, norm = (rest.pop(0) if count else None for count in like[3:6])
    return Parts(maps, taps, biases, A_log, dt_bias, norm, rest.pop(0))


def heads_of(x: torch.Tensor, heads: int) -> torch.Tensor:
    """``[B, T, heads, channels]`` of ``[B, T, heads * channels]``."""
    return x.view(*x.shape[:2], heads, x.shape[2] // heads)


def read_parts(kernels: Any, layer: Any, gates: TrainingGates) -> Optional[Tuple[Settings, Parts]]:
    """The settings and parameters of a layer.

    Args:
        kernels: the compiled kernels (`myfla.utils.native`).
        layer: a `ConvLayer`.
        gates: its gates.

    Returns:
        None for a layer of which a part has a hook, a bias where none is usual, gaps or another type, or whose parts do
        not fit each other.
    """
    own = layer._modules
    convs = [own.get(f"{name}_conv1d") for name in ("q", "k", "v")]
    norm, gate = own.get("o_norm"), own.get("g_proj")
    gated = type(norm) is FusedRMSNormGated
    if not (gated or type(norm) is RMSNorm) or gated is (gate is None) or not is_free(norm):
        return None
    if any(type(conv) is not ShortConvolution or not is_free(conv) for conv in convs):
        return None
    used = (own["q_proj"], own["k_proj"], own["v_proj"], gate, gates.decay, gates.beta, own["o_proj"])
    maps = [_weight(part) for part in used if part is not None]
    if any(w is None for w in maps) or len({c.activation is None for c in convs}) > 1:
        return None
    of_convs = [conv._parameters for conv in convs]
    biases = tuple(p["bias"] for p in of_convs if p["bias"] is not None)
    parts = Parts(
        tuple(maps[:-1]), tuple(p["weight"] for p in of_convs), biases, gates.A_log, gates.dt_bias,
        norm._parameters["weight"], maps[-1],
    )  # fmt: skip
    settings = Settings(
        layer.num_heads, layer.num_v_heads, layer.head_k_dim, layer.head_v_dim, convs[0].activation is not None,
        norm.activation if gated else None, norm.eps, gates.decay is not None, gates.beta_scale, layer.backend,
    )  # fmt: skip
    fit = layer.conv_size <= kernels.MOST_TAPS and _fit(settings, parts, layer.hidden_size, layer.conv_size)
    return (settings, parts) if fit else None


def _weight(linear: Any) -> Optional[torch.Tensor]:
    """The weight of a plain map without bias and hooks; None for others."""
    if type(linear) is not nn.Linear or not is_free(linear):
        return None
    return linear._parameters.get("weight") if linear._parameters.get("bias", True) is None else None


def _fit(s: Settings, t: Parts, width: int, taps: int) -> bool:
    """Whether the parameters are what the kernels read."""
    keys, values = s.heads * s.key, s.value_heads * s.value
    outputs = [keys, keys, values, *([] if s.activation is None else [values])]
    outputs += [s.value_heads] * (2 if s.decay else 1)
    shapes = [
        *((size, width) for size in outputs), *((size, 1, taps) for size in (keys, keys, values)),
        *((size,) for size in (keys, keys, values) if t.biases),
        *((s.value_heads,) for x in (t.A_log, t.dt_bias) if x is not None),
        *((s.value,) for x in (t.norm,) if x is not None), (width, values),
    ]  # fmt: skip
    given = flat(t, t)
    return are_dense(torch.float32, *given) and [tuple(x.shape) for x in given] == shapes
