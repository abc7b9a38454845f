"""What both forms of the gated delta rule check and prepare."""

import warnings
from typing import Any, Dict, NamedTuple, Optional, Tuple, TypeVar

import torch

from myfla.ops.common.plain_step import are_plain
from myfla.ops.gated_delta_rule.gate import beta_sigmoid, naive_gdn_gate
from myfla.utils.autograd import records
from myfla.utils.errors import unknown_keyword, value_error
from myfla.utils.tensors import check_tensor
from myfla.utils.varlen import check_cu_seqlens

Decay = TypeVar("Decay", torch.Tensor, Optional[torch.Tensor])


class Activation(NamedTuple):
    """What the op does to its inputs before the recurrence, token by token."""

    gate: bool
    A_log: Optional[torch.Tensor]  # [HV]
    dt_bias: Optional[torch.Tensor]  # [HV]
    sigmoid: bool
    neg_eigval: bool

    @property
    def beta_scale(self) -> int:
        """What the sigmoid of beta is multiplied by; 0: beta is the write strength itself."""
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


def check_shapes(who: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Ranks, heads, lengths and number formats of q, k and v."""
    shapes = []
    for name, x in (("q", q), ("k", k), ("v", v)):
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            raise value_error(who, name, "must be a floating point tensor", getattr(x, "dtype", type(x).__name__))
        shapes.append(x.shape)
        if len(shapes[-1]) != 4 or shapes[-1][3] < 1:
            raise value_error(who, name, "must have shape [B, T, heads, size] with sizes from 1", tuple(x.shape))
    of_q, of_k, of_v = shapes
    if of_q[2] != of_k[2]:
        raise value_error(who, "k", f"must have as many heads as q, H={of_q[2]}", of_k[2])
    if of_k != of_q:
        raise value_error(who, "k", f"must have the shape of q, {tuple(of_q)}", tuple(of_k))
    if of_v[:2] != of_q[:2]:
        raise value_error(who, "v", f"must have the batch and length of q, {tuple(of_q[:2])}", tuple(of_v[:2]))
    heads, value_heads = of_q[2], of_v[2]
    if heads == 0 or value_heads == 0 or value_heads % heads:
        raise value_error(who, "v", f"must have a multiple of q's H={heads} heads", value_heads)
    device = q.device
    for name, x in (("k", k), ("v", v)):
        if x.device != device:
            raise value_error(who, name, f"must be on the device of q, {device}", x.device)


def check_per_token(who: str, name: str, x: torch.Tensor, v: torch.Tensor, *more: int) -> None:
    """A tensor ``[B, T, HV, *more]``."""
    want = tuple(v.shape[:3]) + more
    if not isinstance(x, torch.Tensor) or not x.is_floating_point():
        raise value_error(who, name, "must be a floating point tensor", getattr(x, "dtype", type(x).__name__))
    if tuple(x.shape) != want:
        raise value_error(who, name, f"must have shape {want}", tuple(x.shape))
    check_tensor(who, name, x, v, "v")


def take_legacy_keywords(who: str, legacy: dict, state_v_first: bool, known: tuple) -> bool:
    """Read the official keywords that have no name of their own any more; returns ``state_v_first``."""
    for name in legacy:
        if name not in ("transpose_state_layout", "head_first"):
            raise unknown_keyword(who, name, known)
    if legacy.get("head_first"):
        raise value_error(who, "head_first", "is not supported", True, "pass tensors as [B, T, H, D]")
    if "transpose_state_layout" in legacy:
        if state_v_first:
            raise value_error(who, "transpose_state_layout", "is the old name of state_v_first", "both", "pass one")
        warnings.warn(f"{who}: transpose_state_layout is now state_v_first", DeprecationWarning, stacklevel=3)
        return bool(legacy["transpose_state_layout"])
    return state_v_first


def is_plain_step(q: Any, k: Any, v: Any, g: Any, beta: Any, state: Any, activation: Activation) -> bool:
    """Whether these are one token a row and a state for it, and pass every check but the activation's own."""
    for x in (activation.A_log, activation.dt_bias):
        if x is not None and (not isinstance(x, torch.Tensor) or x.dtype is torch.float64 or records(x)):
            return False
    if not are_plain(state, (q, k, v, g, beta)):
        return False
    of_q, of_v = q.shape, v.shape
    if len(of_q) != 4 or len(of_v) != 4:
        return False
    rows, tokens, groups, key = of_q
    heads, value = of_v[2:]
    return (
        tokens == 1
        and k.shape == of_q
        and of_v == (rows, 1, heads, value)
        and g.shape == (rows, 1, heads) == beta.shape
        and state.shape == (rows, heads, key, value)
        and 0 not in (rows, groups, heads, key, value)
        and heads % groups == 0
    )


def count_sequences(who: str, q: torch.Tensor, cu_seqlens: Optional[torch.Tensor]) -> int:
    """N: rows of the batch, or sequences packed in one row."""
    if cu_seqlens is None:
        return q.shape[0]
    return check_cu_seqlens(who, cu_seqlens, q.shape[0], q.shape[1], q)


def state_k_first(
    who: str, state: Optional[torch.Tensor], k: torch.Tensor, v: torch.Tensor, sequences: int, v_first: bool,
    field: str = "initial_state",
) -> Optional[torch.Tensor]:  # fmt: skip
    """An initial state, checked, as a view ``[N, HV, K, V]``."""
    if state is None:
        return None
    sizes = (v.shape[3], k.shape[3]) if v_first else (k.shape[3], v.shape[3])
    shape = (sequences, v.shape[2], *sizes)
    if not isinstance(state, torch.Tensor) or tuple(state.shape) != shape:
        layout = "[N, HV, V, K]" if v_first else "[N, HV, K, V]"
        got = tuple(state.shape) if isinstance(state, torch.Tensor) else type(state).__name__
        raise value_error(who, field, f"must have shape {layout} = {shape}", got)
    if not state.is_floating_point():
        raise value_error(who, field, "must be a floating point tensor", state.dtype)
    check_tensor(who, field, state, v, "v")
    return state.transpose(2, 3) if v_first else state
