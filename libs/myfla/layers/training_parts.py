"""The parts of a layer that one function computes under autograd (`myfla.layers.native_training`): which they are, and
whether they are as the layer was built."""

from typing import Any, List, NamedTuple, Optional, Tuple

import torch
from torch import nn

from myfla.layers.projections import is_free
from myfla.modules import FusedRMSNormGated, RMSNorm, ShortConvolution
from myfla.utils.native import are_dense

__all__ = ["Parts", "TrainingGates", "read_parts", "weight_of"]


class TrainingGates(NamedTuple):
    """The gates of a layer with the gated delta rule or KDA.

    Attributes:
        decay: the map of the input to g before its activation; None: there is no decay.
        beta: the map of the input to beta before its sigmoid.
        A_log, dt_bias: ``[HV]``, for KDA dt_bias ``[HV * K]``, with a decay.
        beta_scale: the write strength is this times the sigmoid, 1 or 2.
        rule: ``"GATED"`` or ``"KDA"``.
        lower_bound: of the gate of KDA, or None.
    """

    decay: Any
    beta: Any
    A_log: Optional[torch.Tensor]
    dt_bias: Optional[torch.Tensor]
    beta_scale: int
    rule: str = "GATED"
    lower_bound: Optional[float] = None


class Parts(NamedTuple):
    """What stands between a layer's input and output.

    Attributes:
        middle: sizes and options, a `myfla_native.middle.Middle`.
        maps: the modules of q, k, v, the output gate, g and beta, the last three may be None.
        sizes: how many numbers each of them has for a token.
        parameters: taps ``[channels, 1, W]`` and biases of three convolutions, ``A_log``, ``dt_bias``, the norm's
            weight; None where there is none.
        last: the output projection.
    """

    middle: Any
    maps: Tuple[Any, ...]
    sizes: Tuple[int, ...]
    parameters: Tuple[Optional[torch.Tensor], ...]
    last: Any


def read_parts(kernels: Any, layer: Any, gates: TrainingGates) -> Optional[Parts]:
    """The parts of a layer.

    Args:
        kernels: the compiled kernels (`myfla.utils.native`).
        layer: a `ConvLayer`.
        gates: its gates.

    Returns:
        None for a layer of which a part has a hook, gaps or another type, or whose parts do not fit each other.
    """
    own = layer._modules
    convs = [own.get("q_conv1d"), own.get("k_conv1d"), own.get("v_conv1d")]
    norm, gate = own.get("o_norm"), own.get("g_proj")
    gated = type(norm) is FusedRMSNormGated
    if not (gated or type(norm) is RMSNorm) or gated is (gate is None) or not is_free(norm):
        return None
    for conv in convs:
        if type(conv) is not ShortConvolution or not is_free(conv) or conv.activation != convs[0].activation:
            return None
    heads, value_heads, key, value = layer.num_heads, layer.num_v_heads, layer.head_k_dim, layer.head_v_dim
    keys, values, of_decay = heads * key, value_heads * value, value_heads * (key if gates.rule == "KDA" else 1)
    of_convs = [conv._parameters for conv in convs]
    parameters = (
        *(p["weight"] for p in of_convs), *(p["bias"] for p in of_convs), gates.A_log, gates.dt_bias,
        norm._parameters["weight"],
    )  # fmt: skip
    taps, channels = layer.conv_size, (keys, keys, values)
    shapes = (*((size, 1, taps) for size in channels), *((size,) for size in channels), (value_heads,), (of_decay,),
              (value,))  # fmt: skip
    if taps > kernels.MOST_TAPS or not _fit(parameters, shapes):
        return None
    middle = kernels.middle.Middle(
        heads, value_heads, key, value, taps, convs[0].activation is not None, getattr(kernels.rules, gates.rule),
        gates.beta_scale, norm.activation if gated else None, key**-0.5, gates.lower_bound, norm.eps,
    )  # fmt: skip
    maps = own["q_proj"], own["k_proj"], own["v_proj"], gate, gates.decay, gates.beta
    return Parts(middle, maps, (*channels, values, of_decay, value_heads), parameters, own["o_proj"])


def _fit(given: Tuple[Any, ...], shapes: Tuple[Tuple[int, ...], ...]) -> bool:
    """Whether tensors are what the kernels read; None always is."""
    there: List[Any] = []
    for x, shape in zip(given, shapes):
        if x is not None:
            if x.shape != shape:
                return False
            there.append(x)
    return are_dense(torch.float32, *there)


def weight_of(linear: Any, outputs: int, inputs: int) -> Optional[torch.Tensor]:
    """The weight ``[outputs, inputs]`` of a plain map without bias and hooks; None for others."""
    if type(linear) is not nn.Linear or not is_free(linear):
        return None
    own = linear._parameters
    weight = own.get("weight")
    if weight is None or own.get("bias", weight) is not None or weight.shape != (outputs, inputs):
        return None
    return weight if are_dense(torch.float32, weight) else None
