"""Run an op that is another rule with other arguments, under its own name."""

from typing import Any, Optional, Sequence, Tuple

import torch

from myfla.ops._delta.backends import run
from myfla.ops._delta.call import Call
from myfla.ops._delta.families.base import Family
from myfla.ops.common.inplace import check_inplace, put_back
from myfla.ops.common.member import Final, state_back
from myfla.ops.gated_delta_rule.inputs import count_sequences
from myfla.utils.errors import value_error
from myfla.utils.tensors import check_scale

__all__ = ["check_chunk_size", "run_member"]


def check_chunk_size(who: str, chunk_size: Optional[int]) -> None:
    """Refuse a chunk size that no chunk form has."""
    if chunk_size is not None and chunk_size not in (16, 32, 64):
        raise value_error(who, "chunk_size", "must be 16, 32 or 64", chunk_size)


def run_member(
    who: str, family: Family, form: str, x: Tuple[Any, ...], initial_state: Optional[torch.Tensor],
    cu_seqlens: Optional[torch.Tensor], *, scale: Optional[float], output_final_state: bool, backend: str,
    out_dtype: torch.dtype, l2norm: bool = False, chunk_size: Optional[int] = None, inplace: bool = False,
    state_v_first: bool = False, given: Sequence[Any] = (),
) -> Final:  # fmt: skip
    """Outputs and final states of checked tensors.

    Args:
        who: the op's name.
        family: whose rule it is.
        form: ``"chunk"`` or ``"recurrent"``.
        x: the family's tensors.
        initial_state: as the caller gave it, its shape checked.
        cu_seqlens: ``[N + 1]`` or None.
        scale: factor on q, or None.
        output_final_state: whether the states are asked for.
        backend: what the caller asked for.
        out_dtype: of the outputs.
        l2norm: normalise q and k first.
        chunk_size: the caller's wish, of the chunk form.
        inplace: write the final states over the initial ones, in the recurrent form.
        state_v_first: the layout of the states.
        given: more tensors that autograd must not record where a state is written.

    Returns:
        o ``[B, T, HV, V]`` and the final states in the caller's layout, or None.
    """
    check_chunk_size(who, chunk_size)
    if inplace:
        check_inplace(who, initial_state, *x, *given)
    state = initial_state.transpose(2, 3) if state_v_first and initial_state is not None else initial_state
    call = Call(
        who, family, form, x, state, check_scale(who, scale, x[1].shape[3]), cu_seqlens,
        count_sequences(who, x[0], cu_seqlens), out_dtype, l2norm, chunk_size=chunk_size, inplace=inplace,
    )  # fmt: skip
    o, final = run(call, backend)
    if inplace and initial_state is not None:
        final = put_back(initial_state, final.transpose(2, 3) if state_v_first else final)
        return o, final if output_final_state else None
    return state_back((o, final if output_final_state else None), state_v_first)
