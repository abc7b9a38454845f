"""The config of encoders of Mamba-2 layers."""

import dataclasses
from dataclasses import dataclass
from typing import Optional

from cfg.encoder_base import BACKENDS, EncoderConfig
from cfg.encoder_linear import ACTIVATIONS
from cfg.validation import Fields

__all__ = ["Mamba2EncoderConfig"]


@dataclass
class Mamba2EncoderConfig(EncoderConfig):
    """An encoder of Mamba-2 layers; the fields are the layer's arguments (`myfla.layers.Mamba2`).

    Args:
        expand (times hidden_size): channels inside the layer; they must be a whole number.
        head_dim (channels): channels of one head; they must divide the channels inside the layer. Null: the size that
            gives the largest possible number of heads up to 4.
        state_size (numbers for each channel): numbers that a head stores for each of its channels.
        n_groups (groups): groups of heads; the heads of a group share B and C.
        conv_kernel (steps): how many steps the short convolution sees.
        use_conv_bias: add a bias in the short convolution.
        hidden_act: activation after the short convolution.
        D_has_hdim: learn the weight of the skip connection for each channel; false: for each head.
        rmsnorm: normalise the output.
        norm_before_gate: normalise the output before the gate; false: after it.
        use_bias: add a bias in the projections.
        dt_min (time steps): smallest initial time step; small ones make the layer forget slowly.
        dt_max (time steps): largest initial time step.
        backend: which code computes the rule, as for ``gated_deltanet``.

    Example:
        >>> Mamba2EncoderConfig(input_size=12, state_size=32).resolved_head_dim
        32
    """

    name: str = "mamba2"
    expand: float = 2.0
    head_dim: Optional[int] = None
    state_size: int = 16
    n_groups: int = 1
    conv_kernel: int = 4
    use_conv_bias: bool = True
    hidden_act: str = "silu"
    D_has_hdim: bool = False
    rmsnorm: bool = True
    norm_before_gate: bool = False
    use_bias: bool = False
    dt_min: float = 0.001
    dt_max: float = 0.1
    backend: str = "auto"

    def validate(self) -> None:
        super().validate()
        fields = Fields(self, "encoder")
        fields.number("expand", 0, 64, open_low=True)
        inner = self.hidden_size * self.expand
        if inner < 1 or abs(inner - round(inner)) > 1e-5 * inner:
            raise fields.error("expand", f"must make a whole number with encoder.hidden_size={self.hidden_size}",
                               self.expand, f"the product is {inner:g}")
        fields.integer("head_dim", 1, 1 << 16, optional=True)
        for size, high in (("state_size", 1 << 16), ("n_groups", 4096), ("conv_kernel", 1024)):
            fields.integer(size, 1, high)
        if self.head_dim is not None and self._inner % self.head_dim:
            raise fields.error("head_dim", f"must divide the layer's {self._inner} channels", self.head_dim,
                               "or null, to choose one that does")
        if self._inner // self.resolved_head_dim % self.n_groups:
            heads = self._inner // self.resolved_head_dim
            raise fields.error("n_groups", f"must divide the number of heads, {heads}", self.n_groups)
        for field in dataclasses.fields(self):
            if field.type is bool:
                fields.flag(field.name)
        fields.choice("hidden_act", ACTIVATIONS)
        for name in ("dt_min", "dt_max"):
            fields.number(name, 0, 1000, open_low=True)
        if self.dt_min > self.dt_max:
            raise fields.error("dt_min", f"must not be above encoder.dt_max={self.dt_max:g}", self.dt_min)
        fields.choice("backend", BACKENDS)

    @property
    def resolved_head_dim(self) -> int:
        """Channels of a head: as given, or those of the largest number of heads up to 4 that fits."""
        if self.head_dim is not None:
            return self.head_dim
        numbers = (4, 3, 2, 1, self.n_groups)
        return next((self._inner // n for n in numbers if not self._inner % n and not n % self.n_groups), 1)

    @property
    def _inner(self) -> int:
        return round(self.hidden_size * self.expand)
