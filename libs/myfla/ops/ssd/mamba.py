"""`mamba_chunk_scan_combined`: the state space dual with the name and arguments of ``mamba_ssm``."""

import math
from typing import Any, NamedTuple, Optional, Tuple, Union

import torch

from myfla.ops.ssd.inputs import check_ssd, run_ssd
from myfla.utils.errors import value_error
from myfla.utils.tensors import check_integers, check_tensor

__all__ = ["mamba_chunk_scan_combined"]

NAME = "mamba_chunk_scan_combined"


def mamba_chunk_scan_combined(
    x: torch.Tensor,
    dt: torch.Tensor,
    A: torch.Tensor,
    B: torch.Tensor,
    C: torch.Tensor,
    chunk_size: Optional[int] = None,
    D: Optional[torch.Tensor] = None,
    z: Optional[torch.Tensor] = None,
    dt_bias: Optional[torch.Tensor] = None,
    initial_states: Optional[torch.Tensor] = None,
    seq_idx: Optional[torch.Tensor] = None,
    cu_seqlens: Optional[torch.Tensor] = None,
    dt_softplus: bool = False,
    dt_limit: Tuple[float, float] = (0.0, math.inf),
    return_final_states: bool = False,
    return_varlen_states: bool = False,
    *,
    backend: str = "auto",
) -> Union[torch.Tensor, Tuple[torch.Tensor, ...]]:
    """`chunk_ssd` as ``mamba_ssm`` calls it: states have the value axis first.

    Args:
        x: ``[B, T, HV, V]`` (heads and head size).
        dt: ``[B, T, HV]``.
        A: ``[HV]``.
        B, C: ``[B, T, H, K]`` (groups and state size).
        chunk_size: accepted; the op chooses its own, which changes rounding only.
        D, z, dt_bias, dt_softplus, dt_limit, backend: as `chunk_ssd`.
        initial_states: ``[N, HV, V, K]``, zeros by default; N is B, or the number of packed sequences.
        seq_idx: ``[B, T]`` integers, another number for every sequence packed in a row. The initial states are then
            ``[B, HV, V, K]`` and belong to the first sequence of each row, the final ones to its last.
        cu_seqlens: ``[N + 1]`` offsets of sequences packed in one row. It suffices to separate them (in ``mamba_ssm``
            it only selects states); together with seq_idx both must agree.
        return_final_states: also return the states after the last tokens.
        return_varlen_states: also return the states after each sequence of cu_seqlens.

    Returns:
        y ``[B, T, HV, V]``; with either flag a tuple of it and the states that were requested, in float32 (or float64).

    Raises:
        ValueError: a shape, head count, offset or option that does not fit; the message says which.
        BackendError: a backend that is unknown or cannot compute this here.

    Example:
        >>> x, decay = torch.ones(1, 3, 1, 1), torch.zeros(1)
        >>> seq_idx = torch.tensor([[0, 0, 1]])
        >>> mamba_chunk_scan_combined(3 * x, x[..., 0], decay, x, x, 256, seq_idx=seq_idx).flatten().tolist()
        [3.0, 6.0, 3.0]
    """
    check_tensor(NAME, "x", x)
    if return_varlen_states and cu_seqlens is None:
        raise value_error(NAME, "return_varlen_states", "needs cu_seqlens", True)
    packed = None if seq_idx is None else _pack(x, seq_idx, cu_seqlens)
    given = {"x": x, "dt": dt, "B": B, "C": C, "z": z}
    states = initial_states
    if packed is not None:
        given = {name: packed.flatten(name, t) for name, t in given.items()}
        states = None if initial_states is None else packed.spread(initial_states)
    ssd = check_ssd(
        NAME, A=A, D=D, dt_bias=dt_bias, dt_softplus=dt_softplus, dt_limit=dt_limit, initial_state=states, **given
    )
    offsets = cu_seqlens if packed is None else packed.cu_seqlens
    y, final = run_ssd(
        NAME, "chunk", ssd, states, offsets, "initial_states", state_v_first=True,
        output_final_state=return_final_states or return_varlen_states, backend=backend,
    )  # fmt: skip
    results = [y if packed is None else y.view(x.shape)]
    if return_final_states and final is not None:
        results.append(final if packed is None else final.index_select(0, packed.last))
    if return_varlen_states and final is not None:
        results.append(final)
    return results[0] if len(results) == 1 else tuple(results)


class _Packed(NamedTuple):
    """Rows of sequences as one row.

    Attributes:
        shape: B and T.
        cu_seqlens: ``[N + 1]`` of all sequences of all rows.
        first, last: ``[B]``: the first and the last sequence of each row.
    """

    shape: Tuple[int, int]
    cu_seqlens: torch.Tensor
    first: torch.Tensor
    last: torch.Tensor

    def flatten(self, name: str, x: Any) -> Any:
        """``[B, T, ...]`` as ``[1, B T, ...]``."""
        if x is None:
            return None
        check_tensor(NAME, name, x)
        if tuple(x.shape[:2]) != self.shape:
            raise value_error(NAME, name, f"must have the batch and length of x, {self.shape}", tuple(x.shape[:2]))
        return x.flatten(0, 1).unsqueeze(0)

    def spread(self, states: Any) -> torch.Tensor:
        """States of rows as those of sequences, zeros except for each row's first."""
        check_tensor(NAME, "initial_states", states, self.cu_seqlens)
        if states.dim() != 4 or len(states) != self.shape[0]:
            rule = f"must have shape [B, HV, V, K] with B = {self.shape[0]}"
            raise value_error(NAME, "initial_states", rule, tuple(states.shape))
        empty = states.new_zeros(len(self.cu_seqlens) - 1, *states.shape[1:])
        return empty.index_copy(0, self.first, states)


def _pack(x: torch.Tensor, seq_idx: Any, cu_seqlens: Any) -> Optional[_Packed]:
    check_integers(NAME, "seq_idx", seq_idx, 2)
    check_tensor(NAME, "seq_idx", seq_idx, x)
    shape: Tuple[int, int] = (x.shape[0], x.shape[1]) if x.dim() > 1 else (-1, -1)
    if tuple(seq_idx.shape) != shape:
        raise value_error(NAME, "seq_idx", "must have the batch and length of x", tuple(seq_idx.shape))
    if seq_idx.numel() == 0 or seq_idx.is_meta:  # on meta there are shapes only, which do not depend on it
        return None
    starts = torch.ones_like(seq_idx, dtype=torch.bool)
    starts[:, 1:] = seq_idx[:, 1:] != seq_idx[:, :-1]
    offsets = starts.flatten().nonzero().flatten()
    offsets = torch.cat([offsets, offsets.new_tensor([seq_idx.numel()])])
    if cu_seqlens is not None:
        check_integers(NAME, "cu_seqlens", cu_seqlens, 1)
        if cu_seqlens.tolist() != offsets.tolist():
            rule = f"must begin sequences where seq_idx does, at {offsets.tolist()}"
            raise value_error(NAME, "cu_seqlens", rule, cu_seqlens.tolist(), "pass one of the two")
    last = starts.sum(1).cumsum(0) - 1
    first = torch.cat([last.new_zeros(1), last[:-1] + 1])
    return _Packed(shape, offsets, first, last)
