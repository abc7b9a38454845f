"""The checks and preparations of both forms of the gated delta rule."""

from typing import Any, Dict, NamedTuple, Optional, Tuple, TypeVar

import torch

from myfla.ops.gated_delta_rule.gate import beta_sigmoid, naive_gdn_gate
from myfla.utils.errors import value_error
from myfla.utils.tensors import check_tensor

Decay = TypeVar("Decay", torch.Tensor, Optional[torch.Tensor])


class Activation(NamedTuple):
    """The changes that the operation makes to its inputs before the recurrence, token by token."""

    gate: bool
    A_log: Optional[torch.Tensor]  # [HV]
    dt_bias: Optional[torch.Tensor]  # [HV]
    sigmoid: bool
    neg_eigval: bool

    @property
    def beta_scale(self) -> int:
        """The factor of the sigmoid of beta; 0: beta is the write strength itself."""
        return (2 if self.neg_eigval else 1) if self.sigmoid else 0

    @property
    def decay(self) -> Tuple[Optional[torch.Tensor], Optional[torch.Tensor]]:
        """A_log and dt_bias, if g is to be activated with them."""
        return (self.A_log, self.dt_bias) if self.gate else (None, None)

    def check(self, who: str, g: Optional[torch.Tensor], heads: int) -> None:
        """Options that contradict each other or lack what they need."""
        if self.neg_eigval and not self.sigmoid:
            hint = "or pass beta in (0, 2) and leave allow_neg_eigval out"
            rule = "doubles the op's own sigmoid and needs use_beta_sigmoid_in_kernel=True"
            raise value_error(who, "allow_neg_eigval", rule, True, hint)
        if not self.gate:
            return
        if self.A_log is None:
            raise value_error(who, "A_log", "is required with use_gate_in_kernel=True", None, "pass A_log [HV]")
        if g is None:
            raise value_error(who, "g", "is required with use_gate_in_kernel=True", None, "pass the pre-activation")
        for name, x in (("A_log", self.A_log), ("dt_bias", self.dt_bias)):
            if x is not None:
                check_tensor(who, name, x, g if isinstance(g, torch.Tensor) else None, "g")
            if x is not None and tuple(x.shape) != (heads,):
                raise value_error(who, name, f"must have shape [HV] = {(heads,)}", tuple(x.shape))

    def gates(self, g: Decay, beta: torch.Tensor) -> Tuple[Decay, torch.Tensor]:
        """Log decay and write strength; differentiable."""
        if self.gate and g is not None and self.A_log is not None:  # as `check` has seen
            g = naive_gdn_gate(g, self.A_log, self.dt_bias)
        return g, beta_sigmoid(beta, self.neg_eigval) if self.sigmoid else beta

    def official(self) -> Dict[str, Any]:
        """These options under their official names."""
        return {
            "use_gate_in_kernel": self.gate, "A_log": self.A_log, "dt_bias": self.dt_bias,
            "use_beta_sigmoid_in_kernel": self.sigmoid, "allow_neg_eigval": self.neg_eigval,
        }  # fmt: skip

    def changes(self) -> bool:
        """Whether g or beta are changed."""
        return self.gate or self.sigmoid
