"""The checks and preparations of both forms of the rule."""

from typing import Any, Dict, NamedTuple, Optional, Tuple

import torch

from myfla.ops.gated_delta_rule.gate import beta_sigmoid
from myfla.ops.kda.gate import fused_kda_gate
from myfla.utils.errors import value_error
from myfla.utils.tensors import check_tensor

__all__ = ["KdaActivation"]


class KdaActivation(NamedTuple):
    """The changes that the operation makes to g and beta before the recurrence, token by token."""

    gate: bool
    A_log: Optional[torch.Tensor]  # [HV]
    dt_bias: Optional[torch.Tensor]  # [HV * K]
    lower_bound: Optional[float]
    sigmoid: bool
    neg_eigval: bool

    @property
    def beta_scale(self) -> int:
        """The factor of the sigmoid of beta; 0: beta is the write strength itself."""
        return (2 if self.neg_eigval else 1) if self.sigmoid else 0

    @property
    def decay(self) -> Tuple[Optional[torch.Tensor], Optional[torch.Tensor]]:
        """A_log ``[HV]`` and dt_bias ``[HV * K]``, if g is to be activated with them."""
        if not self.gate:
            return None, None
        A_log, dt_bias = (x if x is None or x.dim() == 1 else x.reshape(-1) for x in self[1:3])
        return A_log, dt_bias

    def check(self, who: str, g: torch.Tensor) -> None:
        """Options that contradict each other or lack what they need; ``g`` is ``[B, T, HV, K]``."""
        if self.neg_eigval and not self.sigmoid:
            hint = "or pass beta in (0, 2) and leave allow_neg_eigval out"
            rule = "doubles the op's own sigmoid and needs use_beta_sigmoid_in_kernel=True"
            raise value_error(who, "allow_neg_eigval", rule, True, hint)
        if self.lower_bound is not None and not self.lower_bound < 0:
            raise value_error(who, "lower_bound", "must be negative, as a log decay is", self.lower_bound)
        if not self.gate:
            return
        if self.A_log is None and self.lower_bound is None:
            rule = "is required with use_gate_in_kernel=True and no lower_bound"
            raise value_error(who, "A_log", rule, None, "pass A_log [HV]")
        heads, key = g.shape[2:]
        fields = ("A_log", self.A_log, heads, "[HV]"), ("dt_bias", self.dt_bias, heads * key, "[HV * K]")
        for name, x, size, shape in fields:
            if x is not None:
                check_tensor(who, name, x, g, "g")
            if x is not None and (x.numel() != size or not x.is_floating_point()):
                got = f"{x.dtype} {tuple(x.shape)}"
                raise value_error(who, name, f"must hold {shape} = {size} floating point numbers", got)

    def changes(self) -> bool:
        """Whether g or beta are changed."""
        return self.gate or self.sigmoid

    def gates(self, g: torch.Tensor, beta: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        """Log decay and write strength; differentiable."""
        if self.gate:
            g = fused_kda_gate(g, self.A_log, self.dt_bias, self.lower_bound)
        return g, beta_sigmoid(beta, self.neg_eigval) if self.sigmoid else beta

    def official(self) -> Dict[str, Any]:
        """These options under their official names."""
        return {
            "use_gate_in_kernel": self.gate, "A_log": self.A_log, "dt_bias": self.dt_bias,
            "lower_bound": self.lower_bound, "use_beta_sigmoid_in_kernel": self.sigmoid,
            "allow_neg_eigval": self.neg_eigval,
        }  # fmt: skip
