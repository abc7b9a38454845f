"""The common end of all operations: checked arguments become a call, whose results are returned as requested."""

from typing import Any, Optional, Sequence, Tuple

import torch

from myfla.ops._delta.backends import select
from myfla.ops._delta.call import Call
from myfla.ops._delta.families.base import Family
from myfla.ops._delta.sequences import reverse_sequences
from myfla.ops._delta.steps import Key, Step, keep_step
from myfla.ops.common.checks import check_chunk_size, count_sequences
from myfla.ops.common.inplace import check_inplace, put_back
from myfla.utils.tensors import check_scale

__all__ = ["run_rule"]

Final = Tuple[torch.Tensor, Optional[torch.Tensor]]


def run_rule(
    who: str, family: Family, form: str, x: Tuple[Any, ...], initial_state: Optional[torch.Tensor],
    cu_seqlens: Optional[torch.Tensor], *, scale: Optional[float], output_final_state: bool, backend: str,
    out_dtype: torch.dtype, sequences: Optional[int] = None, l2norm: bool = False, activation: Any = None,
    chunk_size: Optional[int] = None, inplace: bool = False, state_v_first: bool = False, reverse: bool = False,
    lower_bound: Optional[float] = None, channel_decays: Sequence[Optional[torch.Tensor]] = (),
    given: Sequence[Any] = (), key: Optional[Key] = None,
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
        output_final_state: whether the states are requested.
        backend: the choice of the caller.
        out_dtype: of the outputs.
        sequences: N, where ``cu_seqlens`` has been checked.
        l2norm, activation, lower_bound, channel_decays: as `Call`.
        chunk_size: the choice of the caller, for the chunk form.
        inplace: write the final states over the initial ones, in the recurrent form.
        state_v_first: the layout of the states.
        reverse: process every sequence from its last token to its first.
        given: more tensors that autograd must not record where a state is written.
        key: of a decoding step (`myfla.ops._delta.steps`), which is planned for the next calls like it.

    Returns:
        o ``[B, T, HV, V]`` and the final states in the caller's layout, or None.
    """
    if chunk_size is not None:
        check_chunk_size(who, chunk_size)
    if inplace:
        check_inplace(who, initial_state, *x, *channel_decays, *given)
    if sequences is None:
        sequences = count_sequences(who, x[0], cu_seqlens)
    scale, state = x[1].shape[3] ** -0.5 if scale is None else check_scale(who, scale, 0), initial_state
    if state_v_first and state is not None:
        state = state.transpose(2, 3)
    if reverse:
        x = tuple(reverse_sequences(t, cu_seqlens) for t in x)
        channel_decays = tuple(t if t is None else reverse_sequences(t, cu_seqlens) for t in channel_decays)
    call = Call(
        who, family, form, x, state, scale, cu_seqlens, sequences, out_dtype, l2norm, activation, chunk_size, inplace,
        lower_bound, channel_decays, state_v_first,
    )  # fmt: skip
    chosen = select(call, backend)
    step = None if key is None or chosen.plan is None else chosen.plan(call, output_final_state)
    if key is not None and step is not None:
        step = _of_v_first(step, inplace) if state_v_first else step
        keep_step(key, step)
        return step(x, activation, initial_state)
    o, final = chosen.run(call)
    o = reverse_sequences(o, cu_seqlens) if reverse else o
    if not output_final_state and not inplace:
        return o, None
    final = final.transpose(2, 3) if state_v_first else final
    if inplace and initial_state is not None:
        final = final if final is initial_state else put_back(initial_state, final)
        return o, final if output_final_state else None
    return o, final.contiguous()


def _of_v_first(step: Step, inplace: bool) -> Step:
    """The step for states ``[N, HV, V, K]``."""

    def turned(x: Tuple[Any, ...], activation: Any, state: Any) -> Final:
        o, final = step(x, activation, state.transpose(2, 3))
        return o, None if final is None else state if inplace else final.transpose(2, 3).contiguous()

    return turned
