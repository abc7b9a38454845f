"""What all forms of the state space dual share: its inputs as queries, keys, values and log decays, and its outputs."""

import math
from typing import Any, NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F

from myfla.ops._delta.families.gla import SIMPLE_GLA
from myfla.ops.common.checks import count_sequences, state_k_first
from myfla.ops.common.run_rule import run_rule
from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.errors import value_error
from myfla.utils.tensors import check_tensor

__all__ = ["SSD", "check_ssd", "run_ssd", "time_steps"]

Limit = Tuple[float, float]


class SSD(NamedTuple):
    """The op's inputs, checked.

    Attributes:
        x: ``[B, T, HV, V]``.
        dt: ``[B, T, HV]``.
        A: ``[HV]``.
        B, C: ``[B, T, H, K]``.
        D: ``[HV]``, ``[HV, V]`` or None.
        z: ``[B, T, HV, V]`` or None.
        dt_bias: ``[HV]`` or None.
        dt_softplus: whether dt passes softplus.
        dt_limit: what it is then kept between.
        dtype: of sums and states.
    """

    x: torch.Tensor
    dt: torch.Tensor
    A: torch.Tensor
    B: torch.Tensor
    C: torch.Tensor
    D: Optional[torch.Tensor]
    z: Optional[torch.Tensor]
    dt_bias: Optional[torch.Tensor]
    dt_softplus: bool
    dt_limit: Limit
    dtype: torch.dtype

    def as_gla(self) -> Tuple[torch.Tensor, ...]:
        """Queries, keys, values and log decays of `simple_gla`: ``C, B, dt x, dt A``."""
        dt = time_steps(self.dt, self.dt_bias, self.dt_softplus, self.dt_limit, self.dtype)
        return self.C, self.B, self.x.to(self.dtype) * dt.unsqueeze(-1), dt * self.A.to(self.dtype)

    @property
    def out_dtype(self) -> torch.dtype:
        """What the sums are wanted in: rounded once, after `finish`."""
        return self.x.dtype if self.D is None and self.z is None else self.dtype

    def finish(self, o: torch.Tensor) -> torch.Tensor:
        """``(o + D x) silu(z)`` in the format of x."""
        if self.D is not None:
            D = self.D.to(self.dtype)
            o = torch.addcmul(o, self.x.to(self.dtype), D if D.dim() == 2 else D.unsqueeze(-1))
        if self.z is not None:
            o = o * F.silu(self.z.to(self.dtype))
        return o.to(self.x.dtype)


def run_ssd(
    who: str, form: str, ssd: SSD, initial_state: Any, cu_seqlens: Optional[torch.Tensor],
    field: str = "initial_state", **options: Any,
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:  # fmt: skip
    """Outputs, and final states in the caller's layout, or None.

    Args:
        who: the op's name.
        form: ``"chunk"`` or ``"recurrent"``.
        ssd: what `check_ssd` gave.
        field: the name of the initial state.
        **options: handed on to `run_rule`, ``state_v_first`` among them.
    """
    sequences = count_sequences(who, ssd.x, cu_seqlens)
    state_k_first(who, initial_state, ssd.B, ssd.x, sequences, options["state_v_first"], field)
    o, final = run_rule(
        who, SIMPLE_GLA, form, ssd.as_gla(), initial_state, cu_seqlens, scale=1.0, out_dtype=ssd.out_dtype,
        sequences=sequences, **options,
    )  # fmt: skip
    return ssd.finish(o), final


def time_steps(
    dt: torch.Tensor, bias: Optional[torch.Tensor], softplus: bool, limit: Limit, dtype: torch.dtype
) -> torch.Tensor:
    """``clamp(softplus(dt + bias), *limit)``.

    Args:
        dt: ``[..., heads]``.
        bias: ``[heads]`` or None.
        softplus, limit: see above.
        dtype: what it is computed in.
    """
    dt = dt.to(dtype)
    dt = dt if bias is None else dt + bias.to(dtype)
    dt = F.softplus(dt) if softplus else dt
    low, high = limit
    without_effect = high == math.inf and (low == -math.inf or (softplus and low <= 0))
    return dt if without_effect else dt.clamp(low, high)


def check_ssd(
    who: str, x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, z: Any, dt_bias: Any, dt_softplus: bool, dt_limit: Any,
    initial_state: Any = None,
) -> SSD:  # fmt: skip
    """The op's inputs, if they fit together.

    Args:
        who: the op's name.
        others: as `chunk_ssd` has them; of the initial state only the dtype counts.
    """
    for name, given, rule in (
        ("x", x, "[B, T, HV, V]"), ("B", B, "[B, T, H, K]"), ("C", C, "[B, T, H, K]"),
    ):  # fmt: skip
        _check_float(who, name, given, x)
        if given.dim() != 4 or given.shape[3] < 1:
            raise value_error(who, name, f"must have shape {rule} with sizes from 1", tuple(given.shape))
    if C.shape != B.shape:
        raise value_error(who, "C", f"must have the shape of B, {tuple(B.shape)}", tuple(C.shape))
    if B.shape[:2] != x.shape[:2]:
        raise value_error(who, "B", f"must have the batch and length of x, {tuple(x.shape[:2])}", tuple(B.shape[:2]))
    groups, heads = B.shape[2], x.shape[2]
    if groups == 0 or heads == 0 or heads % groups:
        raise value_error(who, "B", f"must have a number of heads (groups) that divides x's HV={heads}", groups)
    for name, given, shapes in (
        ("dt", dt, (tuple(x.shape[:3]),)), ("A", A, ((heads,),)), ("D", D, ((heads,), tuple(x.shape[2:]))),
        ("z", z, (tuple(x.shape),)), ("dt_bias", dt_bias, ((heads,),)),
    ):  # fmt: skip
        if given is None and name not in ("dt", "A"):
            continue
        _check_float(who, name, given, x)
        if tuple(given.shape) not in shapes:
            rule = "must have shape " + " or ".join(str(shape) for shape in dict.fromkeys(shapes))
            raise value_error(who, name, rule, tuple(given.shape))
    state = initial_state if isinstance(initial_state, torch.Tensor) else None
    dtype = accumulation_dtype(x, dt, A, B, C, D, z, dt_bias, state)
    return SSD(x, dt, A, B, C, D, z, dt_bias, bool(dt_softplus), _check_limit(who, dt_limit), dtype)


def _check_float(who: str, name: str, given: Any, x: Any) -> None:
    if not isinstance(given, torch.Tensor) or not given.is_floating_point():
        got = getattr(given, "dtype", type(given).__name__)
        raise value_error(who, name, "must be a floating point tensor", got)
    check_tensor(who, name, given, x)


def _check_limit(who: str, limit: Any) -> Limit:
    try:
        low, high = (float(number) for number in limit)
    except (TypeError, ValueError):
        low, high = math.nan, math.nan
    if not low <= high:
        raise value_error(who, "dt_limit", "must be two numbers, the least time step and the largest", limit)
    return low, high
