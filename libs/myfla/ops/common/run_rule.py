"""The common end of all operations: checked arguments become a call, whose results are returned as requested."""

from typing import Any, Optional, Sequence, Tuple

import torch

from myfla.ops._delta.backends import select
from myfla.ops._delta.call import Call
from myfla.ops._delta.families.base import Family
from myfla.ops._delta.plans import Key, Run, keep_plan
from myfla.ops._delta.sequences import reverse_sequences
from myfla.ops.common.checks import check_chunk_size, count_sequences
from myfla.ops.common.inplace import check_inplace, put_back
from myfla.utils.tensors import check_scale
from myfla.utils.varlen import check_cu_seqlens

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
        key: of the call (`myfla.ops._delta.plans`), which is planned for the next ones like it; not with ``reverse``,
            and only if every tensor of the call is in ``x``, ``activation`` and ``initial_state``.

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
    plan = None if key is None or reverse or chosen.plan is None else chosen.plan(call, output_final_state)
    final: Optional[torch.Tensor]
    if key is None or plan is None:
        o, final = chosen.run(call)
        o = reverse_sequences(o, cu_seqlens) if reverse else o
    else:
        keep_plan(key, plan if cu_seqlens is None and not state_v_first else _around(plan, call, output_final_state))
        o, final = plan(x, activation, state, cu_seqlens)
    return o, _final(final, initial_state, inplace, output_final_state, state_v_first)


def _final(
    final: Optional[torch.Tensor], initial_state: Optional[torch.Tensor], inplace: bool, wanted: bool, v_first: bool
) -> Optional[torch.Tensor]:
    """The final states as the caller wants them; in place they are written to the initial ones."""
    if final is None or not (wanted or inplace):
        return None
    final = final.transpose(2, 3) if v_first else final
    if inplace and initial_state is not None:
        final = final if final is initial_state else put_back(initial_state, final)
    return final.contiguous() if wanted else None


def _around(run: Run, call: Call, wanted: bool) -> Run:
    """The function for states in the caller's layout, which checks the offsets of packed sequences."""
    who, tokens, inplace, v_first = call.who, call.x[0].shape[1], call.inplace, call.state_v_first

    def around(x: Tuple[Any, ...], activation: Any, initial_state: Any, cu_seqlens: Any = None) -> Final:
        if cu_seqlens is not None:
            check_cu_seqlens(who, cu_seqlens, 1, tokens)
        state = initial_state.transpose(2, 3) if v_first and initial_state is not None else initial_state
        o, final = run(x, activation, state, cu_seqlens)
        return o, _final(final, initial_state, inplace, wanted, v_first)

    return around
