"""The configs of encoders whose head size does not depend on the width: GatedDeltaNet and its relatives."""

import dataclasses
from dataclasses import dataclass
from typing import Any, Optional

from cfg.attention import check_attention
from cfg.encoder_base import BACKENDS, MODES, EncoderConfig
from cfg.validation import Fields

__all__ = ["CombaEncoderConfig", "DeltaHeadsConfig", "GDN2EncoderConfig", "GatedDeltaNetEncoderConfig",
           "GatedDeltaProductEncoderConfig", "KDAEncoderConfig"]

GATE_ACTIVATIONS = ("swish", "silu", "sigmoid")


@dataclass
class DeltaHeadsConfig(EncoderConfig):
    """What the encoders of this file share; the fields are the layers' arguments.

    Args:
        num_heads (heads): number of query and key heads.
        head_dim (channels): size of a query or key head; it does not depend on ``hidden_size``.
        expand_v (times head_dim): size of a value head; the product with ``head_dim`` must be a whole number.
        num_v_heads (heads): number of value heads, a multiple of ``num_heads``; null: ``num_heads``.
        mode: form of the rule for more than 64 tokens without gradients: ``chunk`` or ``fused_recurrent``.
        use_short_conv: apply a short causal convolution to queries, keys and values.
        conv_size (steps): how many steps the short convolution sees.
        conv_bias: add a bias in the short convolution.
        backend: which code computes the rule (see the guide on backends): ``auto``, ``naive``, ``torch``, ``native``,
            ``compiled`` or ``fla``. It belongs to the machine and is not saved with the encoder.
    """

    num_heads: int = 4
    head_dim: int = 16
    expand_v: float = 2.0
    num_v_heads: Optional[int] = None
    mode: str = "chunk"
    use_short_conv: bool = True
    conv_size: int = 4
    conv_bias: bool = False
    backend: str = "auto"

    def validate(self) -> None:
        super().validate()
        fields = Fields(self, "encoder")
        fields.integer("num_heads", 1, 4096)
        fields.integer("head_dim", 1, 4096)
        fields.number("expand_v", 0, 64, open_low=True)
        value_size = self.head_dim * self.expand_v
        if value_size < 1 or abs(value_size - round(value_size)) > 1e-5 * value_size:
            raise fields.error("expand_v", f"must make a whole number with encoder.head_dim={self.head_dim}",
                               self.expand_v, f"the product is {value_size:g}")
        fields.integer("num_v_heads", 1, 4096, optional=True)
        if self.num_v_heads is not None and self.num_v_heads % self.num_heads:
            raise fields.error("num_v_heads", f"must be a multiple of encoder.num_heads={self.num_heads}",
                               self.num_v_heads, f"use {self.num_heads}, {2 * self.num_heads}, ... or null")
        fields.choice("mode", MODES)
        for field in dataclasses.fields(self):
            if field.type is bool:
                fields.flag(field.name)
        fields.integer("conv_size", 1, 1024)
        fields.choice("backend", BACKENDS)


@dataclass
class GatedDeltaNetEncoderConfig(DeltaHeadsConfig):
    """An encoder of GatedDeltaNet layers; the fields are the layer's arguments (`myfla.layers.GatedDeltaNet`).

    Args:
        use_gate: multiply the output by a gate that is computed from the input.
        allow_neg_eigval: let the write strength reach 2, so that the state can change its sign along a key.
        output_gate_activation: activation of the output gate.
        attn: which layers are softmax attention (`myfla.layers.Attention`) instead, e.g. ``{layers: [1, 3], num_heads:
            4}``; optional are ``num_kv_heads``, ``qkv_bias``, ``window_size`` and ``rope_theta``. Null: none.

    Example:
        >>> GatedDeltaNetEncoderConfig(input_size=12, use_gate=False).name
        'gated_deltanet'
    """

    name: str = "gated_deltanet"
    use_gate: bool = True
    allow_neg_eigval: bool = False
    output_gate_activation: str = "swish"
    attn: Any = None  # a mapping; OmegaConf cannot set an optional one on the command line

    def validate(self) -> None:
        super().validate()
        fields = Fields(self, "encoder")
        fields.choice("output_gate_activation", GATE_ACTIVATIONS)
        fields.rule("attn", "null or a mapping with layers and num_heads")
        if self.attn is not None:
            self.attn = check_attention(self.attn, self.hidden_size, self.num_layers)


@dataclass
class KDAEncoderConfig(DeltaHeadsConfig):
    """An encoder of Kimi Delta Attention layers (`myfla.layers.KimiDeltaAttention`).

    Args:
        allow_neg_eigval: let the write strength reach 2, so that the state may change its sign along a key.
        safe_gate: keep the log decay of a step above ``lower_bound``, which must then be set.
        lower_bound: smallest log decay of a step, a negative number; null: no bound.

    Example:
        >>> KDAEncoderConfig(input_size=12, lower_bound=-5.0).name
        'kda'
    """

    name: str = "kda"
    expand_v: float = 1.0
    allow_neg_eigval: bool = False
    safe_gate: bool = False
    lower_bound: Optional[float] = None

    def validate(self) -> None:
        super().validate()
        fields = Fields(self, "encoder")
        fields.number("lower_bound", -1000, 0, open_high=True, optional=True)
        if self.lower_bound is None and self.safe_gate:
            raise fields.error("lower_bound", "must be set with encoder.safe_gate=true", None, "use -5.0")


@dataclass
class GatedDeltaProductEncoderConfig(DeltaHeadsConfig):
    """An encoder of Gated DeltaProduct layers (`myfla.layers.GatedDeltaProduct`).

    Args:
        use_output_gate: multiply the output by a gate that is computed from the input.
        use_forget_gate: let the state decay at every token.
        allow_neg_eigval: let the write strength reach 2, so that the state may change its sign along a key.
        num_householder (steps): steps of the delta rule for each token.

    Example:
        >>> GatedDeltaProductEncoderConfig(input_size=12, num_householder=3).name
        'gated_deltaproduct'
    """

    name: str = "gated_deltaproduct"
    use_output_gate: bool = True
    use_forget_gate: bool = True
    allow_neg_eigval: bool = True
    num_householder: int = 2

    def validate(self) -> None:
        super().validate()
        Fields(self, "encoder").integer("num_householder", 1, 64)


@dataclass
class GDN2EncoderConfig(DeltaHeadsConfig):
    """An encoder of Gated DeltaNet 2 layers (`myfla.layers.GatedDeltaNet2`).

    Args:
        allow_neg_eigval: let the write strength reach 2, so that the state may change its sign along a key.

    Example:
        >>> GDN2EncoderConfig(input_size=12).name
        'gdn2'
    """

    name: str = "gdn2"
    allow_neg_eigval: bool = False


@dataclass
class CombaEncoderConfig(DeltaHeadsConfig):
    """An encoder of Comba layers (`myfla.layers.Comba`).

    Args:
        use_output_gate: multiply the output by a gate that is computed from the input.
        use_output_correction: subtract a learned multiple of the erasing key from the query.
        use_inner_decay: scale the erasing key by a learned factor; false: it is the writing key.
        correction_factor: initial value of the multiple of ``use_output_correction``.

    Example:
        >>> CombaEncoderConfig(input_size=12, correction_factor=0.02).name
        'comba'
    """

    name: str = "comba"
    use_output_gate: bool = True
    use_output_correction: bool = True
    use_inner_decay: bool = True
    correction_factor: float = 1.0

    def validate(self) -> None:
        super().validate()
        Fields(self, "encoder").number("correction_factor", 0, 100, open_low=True)
