"""Encoder configs: what every encoder has, and what each built-in layer adds.

These are dataclasses for OmegaConf, so annotations are `typing.Optional` and friends. `__post_init__` checks every
field; OmegaConf runs it in ``OmegaConf.to_object``, which an application calls before it uses a config.
"""

from dataclasses import dataclass
from typing import Any, Dict, Optional, Type

from cfg.attention import check_attention
from cfg.validation import Fields

__all__ = ["BACKENDS", "ENCODER_CONFIGS", "DIRECTIONS", "MODES", "POOLINGS", "EncoderConfig", "GRUEncoderConfig",
           "GatedDeltaNetEncoderConfig", "LSTMEncoderConfig", "RNNEncoderConfig", "RWKV7EncoderConfig", "STEMS"]

DIRECTIONS = ("causal", "bidirectional")
POOLINGS = ("mean", "last", "max", "attention")
STEMS = ("none", "patch", "conv")
BACKENDS = ("auto", "naive", "torch", "compiled", "fla")  # as in myfla.backends, which needs torch
MODES = ("chunk", "fused_recurrent")
GATE_ACTIVATIONS = ("swish", "silu", "sigmoid")


@dataclass
class EncoderConfig:
    """What every encoder has; a strategy's own config adds its layer's flags.

    Args:
        name: the strategy to build, as the factory knows it.
        input_size: channels of real-valued input ``[B, T, input_size]``; null until it is known from the data.
        vocab_size: for input of token ids ``[B, T]`` instead; exactly one of the two is set when the encoder is built.
        embedding_std: standard deviation of the token vectors at the start. Small ones (0.02) make a model learn
            sooner to look things up, large ones (1) to keep track of a state.
        hidden_size: width of the stack and of the embedding.
        num_layers: residual blocks (per block, a bidirectional encoder has two mixers and two MLPs).
        direction: ``causal`` (can be fed in pieces) or ``bidirectional``.
        pooling: how one embedding is made of a sequence: ``mean``, ``last``, ``max`` or ``attention``.
        mlp_ratio: inner width of the MLP, as a multiple of ``hidden_size``.
        norm_eps: epsilon of every normalisation.
        dropout: probability on both branches of a block, in training.
        state_weaving: begin each layer in the state in which the layer before it ended (TempoPFN, arXiv 2510.25502):
            every token then knows the whole sequence, so that the encoder cannot be fed in pieces.
        stem: what makes real-valued sequences shorter in front of the stack: ``none``, ``patch`` (``stem_stride`` steps
            become one) or ``conv`` (log2(``stem_stride``) convolutions, each of stride 2). Such an encoder cannot be
            fed in pieces.
        stem_stride: how many times shorter; a power of two for ``conv``.
        stem_kernel: steps that each convolution of ``conv`` looks back.
        pretrained: folder of an official checkpoint (``config.json`` and safetensors) whose sizes and weights the
            blocks, the last norm and, for token ids, the embedding take over. Fields left at their defaults follow the
            checkpoint; one that is set and contradicts it is an error.

    Raises:
        ConfigError: a field breaks its rule; the message starts with ``encoder.<field>``.

    Example:
        >>> GatedDeltaNetEncoderConfig(input_size=12).hidden_size
        64
    """

    name: str = "???"
    input_size: Optional[int] = None
    vocab_size: Optional[int] = None
    embedding_std: float = 1.0
    hidden_size: int = 64
    num_layers: int = 2
    direction: str = "causal"
    pooling: str = "mean"
    mlp_ratio: float = 2.0
    norm_eps: float = 1e-5
    dropout: float = 0.0
    state_weaving: bool = False
    stem: str = "none"
    stem_stride: int = 8
    stem_kernel: int = 8
    pretrained: Optional[str] = None

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Check every field. A subclass calls ``super().validate()`` and then checks its own."""
        fields = Fields(self, "encoder")
        fields.text("name")
        own = type(self).__dataclass_fields__["name"].default
        if own not in ("???", self.name):
            raise fields.error("name", f"must be {own!r} in a {type(self).__name__}", self.name,
                               f"another encoder has another config: encoder={self.name}")
        fields.integer("input_size", 1, 1 << 20, optional=True)
        fields.integer("vocab_size", 1, 1 << 24, optional=True)
        if self.input_size is not None and self.vocab_size is not None:
            raise fields.error("vocab_size", f"must be null when encoder.input_size={self.input_size} is set",
                               self.vocab_size, "an encoder reads features or token ids, not both")
        fields.number("embedding_std", 0, 1000, open_low=True)
        fields.integer("hidden_size", 1, 1 << 16)
        fields.integer("num_layers", 1, 1024)
        fields.choice("direction", DIRECTIONS)
        fields.choice("pooling", POOLINGS)
        fields.number("mlp_ratio", 0, 64, open_low=True)
        fields.number("norm_eps", 0, 1, open_low=True)
        fields.number("dropout", 0, 1, open_high=True)
        fields.flag("state_weaving")
        fields.text("pretrained", optional=True)
        self._check_stem(fields)

    def _check_stem(self, fields: Fields) -> None:
        fields.choice("stem", STEMS)
        fields.integer("stem_stride", 1, 1 << 12)
        fields.integer("stem_kernel", 1, 1 << 10)
        lower = 1 << (self.stem_stride.bit_length() - 1)
        if self.stem == "conv" and self.stem_stride != lower:
            raise fields.error("stem_stride", "must be a power of two with encoder.stem=conv", self.stem_stride,
                               f"use {lower} or {2 * lower}")
        if self.stem == "conv" and self.stem_kernel < min(self.stem_stride, 2):
            raise fields.error("stem_kernel", "must be at least 2, the stride of each convolution", self.stem_kernel)
        if self.stem != "none" and self.vocab_size is not None:
            raise fields.error("stem", "must be none for token ids (encoder.vocab_size is set)", self.stem)

    @property
    def needs_end(self) -> Optional[str]:
        """The setting for which the encoder must know where a sequence ends before it can begin; None if there is none.

        Only an encoder without one can be fed in pieces.
        """
        if self.direction != "causal":
            return f"encoder.direction={self.direction}"
        if self.state_weaving:
            return "encoder.state_weaving=true"
        return None if self.stem == "none" else f"encoder.stem={self.stem}"

    @property
    def intermediate_size(self) -> int:
        """Inner width of the MLP, at least 1."""
        return max(1, round(self.hidden_size * self.mlp_ratio))


@dataclass
class GatedDeltaNetEncoderConfig(EncoderConfig):
    """An encoder of GatedDeltaNet layers; the fields are the layer's arguments (`myfla.layers.GatedDeltaNet`).

    Args:
        num_heads, head_dim: query/key heads and their size, free of ``hidden_size``.
        expand_v: value head size over ``head_dim``; the product must be whole.
        num_v_heads: value heads, a multiple of ``num_heads``; null means ``num_heads``.
        mode: ``chunk`` or ``fused_recurrent``, for long input without gradients (see the layer).
        use_gate, use_short_conv, allow_neg_eigval, conv_size, conv_bias, output_gate_activation: as in the layer.
        attn: which layers are softmax attention (`myfla.layers.Attention`) instead: ``{layers: [1, 3], num_heads: 4}``,
            perhaps with ``num_kv_heads``, ``qkv_bias``, ``window_size`` and ``rope_theta``; null for none.
        backend: whose code computes the rule: ``auto``, ``naive``, ``torch``, ``compiled`` or ``fla``. A choice of this
            machine: it is not saved with the encoder.

    Example:
        >>> GatedDeltaNetEncoderConfig(input_size=12, use_gate=False).name
        'gated_deltanet'
    """

    name: str = "gated_deltanet"
    num_heads: int = 4
    head_dim: int = 16
    expand_v: float = 2.0
    num_v_heads: Optional[int] = None
    mode: str = "chunk"
    use_gate: bool = True
    use_short_conv: bool = True
    allow_neg_eigval: bool = False
    conv_size: int = 4
    conv_bias: bool = False
    output_gate_activation: str = "swish"
    attn: Any = None  # a mapping; OmegaConf cannot set an optional one on the command line
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
        for flag in ("use_gate", "use_short_conv", "allow_neg_eigval", "conv_bias"):
            fields.flag(flag)
        fields.integer("conv_size", 1, 1024)
        fields.choice("output_gate_activation", GATE_ACTIVATIONS)
        if self.attn is not None:
            self.attn = check_attention(self.attn, self.hidden_size, self.num_layers)
        fields.choice("backend", BACKENDS)


@dataclass
class RWKV7EncoderConfig(EncoderConfig):
    """An encoder of RWKV-7 layers; the fields are the layer's arguments (`myfla.layers.RWKV7Attention`).

    Args:
        num_heads, head_dim: their product is ``hidden_size``. Give one, both or neither; with neither, the head is
            the largest divisor of ``hidden_size`` up to 64.
        value_dim: width of the values, a multiple of the number of heads; null means ``hidden_size``.
        decay_low_rank_dim, gate_low_rank_dim, a_low_rank_dim, v_low_rank_dim: ranks of the four LoRAs; null means
            the layer's rule.
        mode: ``chunk`` or ``fused_recurrent``, as in the layer.
        fuse_norm: the official flag; chooses how keys are normalised.
        backend: as in `GatedDeltaNetEncoderConfig`.

    Example:
        >>> RWKV7EncoderConfig(input_size=12, hidden_size=96).resolved_head_dim
        48
    """

    name: str = "rwkv7"
    num_heads: Optional[int] = None
    head_dim: Optional[int] = None
    value_dim: Optional[int] = None
    decay_low_rank_dim: Optional[int] = None
    gate_low_rank_dim: Optional[int] = None
    a_low_rank_dim: Optional[int] = None
    v_low_rank_dim: Optional[int] = None
    mode: str = "chunk"
    fuse_norm: bool = False
    backend: str = "auto"

    def validate(self) -> None:
        super().validate()
        fields = Fields(self, "encoder")
        fields.integer("num_heads", 1, 4096, optional=True)
        fields.integer("head_dim", 1, 4096, optional=True)
        self._check_heads(fields)
        fields.integer("value_dim", 1, 1 << 16, optional=True)
        if self.value_dim is not None and self.value_dim % self.resolved_num_heads:
            raise fields.error("value_dim", f"must be a multiple of the number of heads, {self.resolved_num_heads}",
                               self.value_dim)
        for rank in ("decay_low_rank_dim", "gate_low_rank_dim", "a_low_rank_dim", "v_low_rank_dim"):
            fields.integer(rank, 1, 1 << 16, optional=True)
        fields.choice("mode", MODES)
        fields.flag("fuse_norm")
        fields.choice("backend", BACKENDS)

    def _check_heads(self, fields: Fields) -> None:
        size = f"encoder.hidden_size={self.hidden_size}"
        if self.head_dim is not None and self.hidden_size % self.head_dim:
            raise fields.error("head_dim", f"must divide {size}", self.head_dim, "or null, to choose one that does")
        if self.num_heads is not None and self.hidden_size % self.num_heads:
            raise fields.error("num_heads", f"must divide {size}", self.num_heads, "or null, to choose one that does")
        if self.num_heads is None or self.head_dim is None:
            return
        if self.num_heads * self.head_dim != self.hidden_size:
            raise fields.error("num_heads", f"must make {size} with encoder.head_dim={self.head_dim}",
                               self.num_heads, f"use {self.hidden_size // self.head_dim} or null")

    @property
    def resolved_head_dim(self) -> int:
        """Size of one head: as given, or from ``num_heads``, or the largest divisor of ``hidden_size`` up to 64."""
        if self.head_dim is not None:
            return self.head_dim
        if self.num_heads is not None:
            return self.hidden_size // self.num_heads
        return max(size for size in range(1, min(64, self.hidden_size) + 1) if self.hidden_size % size == 0)

    @property
    def resolved_num_heads(self) -> int:
        """Number of heads; with `resolved_head_dim` it makes ``hidden_size``."""
        return self.hidden_size // self.resolved_head_dim


@dataclass
class RNNEncoderConfig(EncoderConfig):
    """What encoders of PyTorch's own recurrent layers have.

    Args:
        state_size: width of the recurrent state; null means ``hidden_size``.
    """

    state_size: Optional[int] = None

    def validate(self) -> None:
        super().validate()
        Fields(self, "encoder").integer("state_size", 1, 1 << 16, optional=True)


@dataclass
class GRUEncoderConfig(RNNEncoderConfig):
    """An encoder of `torch.nn.GRU` layers, to compare with.

    Example:
        >>> GRUEncoderConfig(input_size=12, state_size=96).name
        'gru'
    """

    name: str = "gru"


@dataclass
class LSTMEncoderConfig(RNNEncoderConfig):
    """An encoder of `torch.nn.LSTM` layers, to compare with.

    Example:
        >>> LSTMEncoderConfig(input_size=12).name
        'lstm'
    """

    name: str = "lstm"


ENCODER_CONFIGS: Dict[str, Type[EncoderConfig]] = {
    "gated_deltanet": GatedDeltaNetEncoderConfig,
    "rwkv7": RWKV7EncoderConfig,
    "gru": GRUEncoderConfig,
    "lstm": LSTMEncoderConfig,
}
