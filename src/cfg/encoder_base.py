"""What the configs of all encoders share.

These are dataclasses for OmegaConf, so annotations are `typing.Optional` and friends. `__post_init__` checks every
field; OmegaConf runs it in ``OmegaConf.to_object``, which an application calls before it uses a config.
"""

from dataclasses import dataclass
from typing import Optional

from cfg.validation import Fields

__all__ = ["BACKENDS", "DIRECTIONS", "MODES", "POOLINGS", "STEMS", "EncoderConfig"]

DIRECTIONS = ("causal", "bidirectional")
POOLINGS = ("mean", "last", "max", "attention")
STEMS = ("none", "patch", "conv", "inception", "auto")
INCEPTION_STRIDES = (1, 2, 4, 8)
BACKENDS = ("auto", "naive", "torch", "native", "compiled", "fla")  # as in myfla.backends, which needs torch
MODES = ("chunk", "fused_recurrent")


@dataclass
class EncoderConfig:
    """The settings of every encoder; the config of a strategy adds those of its layer.

    Args:
        name: the name of the strategy.
        input_size (channels): channels of real-valued input ``[B, T, input_size]``; null: taken from the data.
        vocab_size (token ids): number of token ids, for input of token ids ``[B, T]``; exactly one of ``input_size``
            and ``vocab_size`` is set when the encoder is built.
        embedding_std: standard deviation of the initial token vectors. Small ones (0.02) help to learn recall, large
            ones (1) help to learn to track a state.
        hidden_size (channels): width of the stack and of the embedding.
        num_layers (blocks): number of residual blocks; in a bidirectional encoder each has two mixers and two MLPs.
        direction: ``causal`` (each step sees only earlier ones; can be fed in pieces) or ``bidirectional``.
        pooling: how the hidden states of a sequence become one embedding: ``mean``, ``last``, ``max`` or ``attention``.
        mlp_ratio (times hidden_size): inner width of the MLP, as a multiple of ``hidden_size``.
        norm_eps: epsilon of all norms.
        dropout (probability): dropout probability on both branches of a block.
        drop_path (probability): probability that a sequence skips the mixer of a block in training (stochastic depth,
            arXiv 1603.09382), against overfitting on small sets. Null: chosen from the training data; 0 outside of
            training.
        state_weaving: start each layer with the final state of the layer before it (TempoPFN, arXiv 2510.25502): every
            step then sees the complete sequence, so that the encoder cannot be fed in pieces.
        stem: what stands between real-valued input and the stack: ``none`` (a projection of each step), ``patch``
            (``stem_stride`` steps become one), ``conv`` (log2(``stem_stride``) convolutions, each of stride 2) or
            ``inception`` (three blocks of convolutions of three widths). With ``patch`` or ``conv`` the encoder cannot
            be fed in pieces; with ``inception`` it can, if it is causal. ``auto``: chosen from the training data;
            ``none`` outside of training.
        stem_stride (steps): by which factor the stem shortens sequences; a power of two for ``conv``; 1, 2, 4 or 8 for
            ``inception``, 1 if it is causal. Null: 8; for ``inception`` 4, or 1 if it is causal.
        stem_kernel (steps): how many steps each convolution of ``conv``, or the widest one of ``inception``, sees.
            Null: 8; 19 for ``inception``.
        pretrained: folder of an official checkpoint (``config.json`` and safetensors). The blocks, the last norm and,
            for token ids, the embedding take their sizes and weights from it. A size that is set must not contradict
            it.

    Raises:
        ConfigError: a field breaks its rule; the message starts with ``encoder.<field>``.

    Example:
        >>> EncoderConfig(name="mine", input_size=12).hidden_size
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
    drop_path: Optional[float] = None
    state_weaving: bool = False
    stem: str = "none"
    stem_stride: Optional[int] = None
    stem_kernel: Optional[int] = None
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
        fields.number("drop_path", 0, 1, open_high=True, optional=True)
        fields.flag("state_weaving")
        fields.text("pretrained", optional=True)
        self._check_stem(fields)

    def _check_stem(self, fields: Fields) -> None:
        fields.choice("stem", STEMS)
        fields.integer("stem_stride", 1, 1 << 12, optional=True)
        fields.integer("stem_kernel", 1, 1 << 10, optional=True)
        stride, kernel = self.shortening, self.widest_kernel
        lower = 1 << (stride.bit_length() - 1)
        if self.stem == "conv" and stride != lower:
            raise fields.error("stem_stride", "must be a power of two with encoder.stem=conv", stride,
                               f"use {lower} or {2 * lower}")
        if self.stem == "conv" and kernel < min(stride, 2):
            raise fields.error("stem_kernel", "must be at least 2, the stride of each convolution", kernel)
        if self.stem not in ("none", "auto") and self.vocab_size is not None:
            raise fields.error("stem", "must be none for token ids (encoder.vocab_size is set)", self.stem)
        if self.stem == "inception":
            self._check_inception(fields)

    def _check_inception(self, fields: Fields) -> None:
        if self.shortening not in INCEPTION_STRIDES:
            raise fields.error("stem_stride", "must be 1, 2, 4 or 8 with encoder.stem=inception", self.shortening)
        if self.direction == "causal" and self.shortening > 1:
            raise fields.error("stem_stride", "must be 1 with encoder.stem=inception and encoder.direction=causal",
                               self.shortening, "use encoder.direction=bidirectional to shorten whole sequences")
        if self.hidden_size < 4:
            raise fields.error("hidden_size", "must be at least 4 with encoder.stem=inception: each of its four "
                               "branches has a share", self.hidden_size)

    @property
    def shortening(self) -> int:
        """How many times shorter the stem makes a sequence, if there is one."""
        if self.stem_stride is not None:
            return self.stem_stride
        return 8 if self.stem != "inception" else 1 if self.direction == "causal" else 4

    @property
    def widest_kernel(self) -> int:
        """Steps that a convolution of the stem sees at most, if there is one."""
        return self.stem_kernel or (19 if self.stem == "inception" else 8)

    @property
    def needs_end(self) -> Optional[str]:
        """The setting for which the encoder must know where a sequence ends before it can begin; None if there is none.

        Only an encoder without one can be fed in pieces.
        """
        if self.direction != "causal":
            return f"encoder.direction={self.direction}"
        if self.state_weaving:
            return "encoder.state_weaving=true"
        return None if self.stem in ("none", "inception", "auto") else f"encoder.stem={self.stem}"

    @property
    def intermediate_size(self) -> int:
        """Inner width of the MLP, at least 1."""
        return max(1, round(self.hidden_size * self.mlp_ratio))
