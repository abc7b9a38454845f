"""The configs of encoders whose layers divide their width into heads: DeltaNet and gated linear attention."""

from dataclasses import dataclass
from typing import Optional, Tuple

from cfg.encoder_base import BACKENDS, MODES, EncoderConfig
from cfg.validation import Fields

__all__ = ["DeltaNetEncoderConfig", "GLAEncoderConfig", "WidthHeadsConfig"]

QK_ACTIVATIONS = ("silu", "relu", "elu", "identity")
QK_NORMS = ("l2", "sum")
ACTIVATIONS = ("relu", "sigmoid", "logsigmoid", "silu", "swish", "sqrelu", "gelu")


@dataclass
class WidthHeadsConfig(EncoderConfig):
    """What the encoders of this file share; the fields are the layers' arguments.

    Args:
        num_heads (heads): number of heads; it must divide the channels of all keys and of all values. Null: the largest
            number up to 4 that does.
        expand_k (times hidden_size): channels of all keys together.
        expand_v (times hidden_size): channels of all values together.
        mode: form of the rule for more than 64 tokens without gradients: ``chunk`` or ``fused_recurrent``.
        use_short_conv: apply a short causal convolution to queries, keys and values.
        conv_size (steps): how many steps the short convolution sees.
        conv_bias: add a bias in the short convolution.
        backend: which code computes the rule, as for ``gated_deltanet``.
    """

    num_heads: Optional[int] = None
    expand_k: float = 1.0
    expand_v: float = 1.0
    mode: str = "chunk"
    use_short_conv: bool = True
    conv_size: int = 4
    conv_bias: bool = False
    backend: str = "auto"

    def validate(self) -> None:
        super().validate()
        fields = Fields(self, "encoder")
        fields.integer("num_heads", 1, 4096, optional=True)
        for name in ("expand_k", "expand_v"):
            fields.number(name, 0, 64, open_low=True)
            size = self.hidden_size * getattr(self, name)
            if size < 1 or abs(size - round(size)) > 1e-5 * size:
                raise fields.error(name, f"must make a whole number with encoder.hidden_size={self.hidden_size}",
                                   getattr(self, name), f"the product is {size:g}")
        if any(size % self.resolved_num_heads for size in self._sizes()):
            key, value = self._sizes()
            raise fields.error("num_heads", f"must divide the {key} channels of keys and {value} of values",
                               self.num_heads, "or null, to choose one that does")
        fields.choice("mode", MODES)
        for flag in ("use_short_conv", "conv_bias"):
            fields.flag(flag)
        fields.integer("conv_size", 1, 1024)
        fields.choice("backend", BACKENDS)

    @property
    def resolved_num_heads(self) -> int:
        """Number of heads: as given, or the largest up to 4 that divides keys and values."""
        if self.num_heads is not None:
            return self.num_heads
        return next(heads for heads in (4, 3, 2, 1) if not any(size % heads for size in self._sizes()))

    def _sizes(self) -> Tuple[int, int]:
        return round(self.hidden_size * self.expand_k), round(self.hidden_size * self.expand_v)


@dataclass
class DeltaNetEncoderConfig(WidthHeadsConfig):
    """An encoder of DeltaNet layers (`myfla.layers.DeltaNet`).

    Args:
        use_beta: compute the write strength of each token from the input; false: it is 1.
        use_gate: multiply the output by a gate that is computed from the input.
        allow_neg_eigval: let the write strength reach 2, so that the state can change its sign along a key.
        qk_activation: activation of queries and keys.
        qk_norm: how queries and keys are normalised: to length 1 or to sum 1.

    Example:
        >>> DeltaNetEncoderConfig(input_size=12, qk_norm="sum").name
        'delta_net'
    """

    name: str = "delta_net"
    use_beta: bool = True
    use_gate: bool = False
    allow_neg_eigval: bool = False
    qk_activation: str = "silu"
    qk_norm: str = "l2"

    def validate(self) -> None:
        super().validate()
        fields = Fields(self, "encoder")
        for flag in ("use_beta", "use_gate", "allow_neg_eigval"):
            fields.flag(flag)
        fields.choice("qk_activation", QK_ACTIVATIONS)
        fields.choice("qk_norm", QK_NORMS)


@dataclass
class GLAEncoderConfig(WidthHeadsConfig):
    """An encoder of gated linear attention layers (`myfla.layers.GatedLinearAttention`).

    Args:
        num_kv_heads (heads): number of key and value heads; it must divide ``num_heads``. Null: ``num_heads``.
        feature_map: activation of queries and keys; null: none.
        use_output_gate: multiply the output by a gate that is computed from the input.
        gate_fn: activation of the output gate.
        gate_logit_normalizer: divisor of the log decay; a larger one makes the layer forget more slowly.
        gate_low_rank_dim (channels): rank of the projection that gives the decay.
        clamp_min: smallest log decay of a step, a negative number; null: no bound.

    Example:
        >>> GLAEncoderConfig(input_size=12, feature_map="relu").name
        'gla'
    """

    name: str = "gla"
    use_short_conv: bool = False
    num_kv_heads: Optional[int] = None
    feature_map: Optional[str] = None
    use_output_gate: bool = True
    gate_fn: str = "swish"
    gate_logit_normalizer: int = 16
    gate_low_rank_dim: int = 16
    clamp_min: Optional[float] = None

    def validate(self) -> None:
        super().validate()
        fields = Fields(self, "encoder")
        fields.integer("num_kv_heads", 1, 4096, optional=True)
        if self.num_kv_heads is not None and self.resolved_num_heads % self.num_kv_heads:
            raise fields.error("num_kv_heads", f"must divide the number of heads, {self.resolved_num_heads}",
                               self.num_kv_heads)
        fields.choice("feature_map", ACTIVATIONS, optional=True)
        fields.flag("use_output_gate")
        fields.choice("gate_fn", ACTIVATIONS)
        fields.integer("gate_logit_normalizer", 1, 4096)
        fields.integer("gate_low_rank_dim", 1, 1 << 16)
        fields.number("clamp_min", -1000, 0, open_high=True, optional=True)
