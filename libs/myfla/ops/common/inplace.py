"""``inplace_final_state``: permission to overwrite the caller's state."""

from typing import Optional

import torch

from myfla.utils.autograd import records
from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.errors import value_error

__all__ = ["check_inplace", "put_back"]

FIELD = "inplace_final_state"


def check_inplace(who: str, initial_state: Optional[torch.Tensor], *inputs: Optional[torch.Tensor]) -> None:
    """Refuse a state that cannot take the final one.

    Args:
        who: the op, for the message.
        initial_state: as the caller gave it.
        inputs: the op's other tensors.

    Raises:
        ValueError: no state, one of another dtype or with gaps, or autograd at work.
    """
    if not isinstance(initial_state, torch.Tensor):
        raise value_error(who, FIELD, "needs an initial_state to write", type(initial_state).__name__,
                          "begin with torch.zeros")
    dtype = accumulation_dtype(initial_state, *inputs)
    if initial_state.dtype != dtype:
        raise value_error(who, FIELD, f"needs an initial_state in {dtype}", initial_state.dtype,
                          f"convert it once with initial_state.to({dtype})")
    if not initial_state.is_contiguous():
        raise value_error(who, FIELD, "needs a contiguous initial_state", f"strides {initial_state.stride()}",
                          "use initial_state.contiguous(), and the state that is returned")
    if records(initial_state, *inputs):
        raise value_error(who, FIELD, "needs autograd to be off", "an input that requires a gradient",
                          "call it under torch.no_grad()")


def put_back(initial_state: torch.Tensor, final: torch.Tensor) -> torch.Tensor:
    """``initial_state``, which now holds ``final``."""
    if final.data_ptr() != initial_state.data_ptr() or not final.is_contiguous():
        initial_state.copy_(final)
    return initial_state
