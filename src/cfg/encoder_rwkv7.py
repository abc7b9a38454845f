"""The config of encoders of RWKV-7 layers."""

from dataclasses import dataclass
from typing import Optional

from cfg.encoder_base import BACKENDS, MODES, EncoderConfig
from cfg.validation import Fields

__all__ = ["RWKV7EncoderConfig"]


@dataclass
class RWKV7EncoderConfig(EncoderConfig):
    """An encoder of RWKV-7 layers; the fields are the layer's arguments (`myfla.layers.RWKV7Attention`).

    Args:
        num_heads (heads): number of heads; null: ``hidden_size`` divided by ``head_dim``.
        head_dim (channels): size of a head; null: ``hidden_size`` divided by ``num_heads``, or if that is null too, the
            largest divisor of ``hidden_size`` up to 64.
        value_dim (channels): width of the values, a multiple of the number of heads; null: ``hidden_size``.
        decay_low_rank_dim (channels): rank of the low-rank map of the decay; null: chosen from the width, as fla does.
        gate_low_rank_dim (channels): the same for the output gate.
        a_low_rank_dim (channels): the same for the gate of the removed part.
        v_low_rank_dim (channels): the same for the mixture with the values of the first layer.
        mode: form of the rule for more than 64 tokens without gradients: ``chunk`` or ``fused_recurrent``.
        fuse_norm: flag of the official layer; it selects how keys are normalised.
        backend: which code computes the rule, as for ``gated_deltanet``.

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
