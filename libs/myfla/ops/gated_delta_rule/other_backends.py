"""The gated delta rule by other code than the fast forms: this package's specification, and the official kernels."""

from typing import Any, Callable, Optional, Tuple, cast

import torch

from myfla.backends import official
from myfla.ops.common.sequences import each_sequence
from myfla.ops.gated_delta_rule.inputs import Activation
from myfla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
from myfla.utils.autocast import without_autocast

__all__ = ["naive_tokens", "official_chunks", "official_tokens"]

Result = Tuple[torch.Tensor, Optional[torch.Tensor]]


@without_autocast
def naive_tokens(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    initial_state: Optional[torch.Tensor],
    scale: float,
    cu_seqlens: Optional[torch.Tensor],
    out_dtype: torch.dtype,
) -> Result:
    """`naive_recurrent_gated_delta_rule` for shared heads and packed sequences; always returns the final states."""
    repeats = v.shape[2] // q.shape[2]
    q, k = (x.repeat_interleave(repeats, dim=2) if repeats > 1 else x for x in (q, k))

    def run(q: Any, k: Any, v: Any, g: Any, beta: Any, state: Any) -> Tuple[torch.Tensor, torch.Tensor]:
        o, final = naive_recurrent_gated_delta_rule(q, k, v, beta, g, scale, state, output_final_state=True)
        return o, cast(torch.Tensor, final)

    o, final = each_sequence(run, (q, k, v, g, beta), initial_state, cu_seqlens)
    return o.to(out_dtype), final


def official_chunks(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    initial_state: Optional[torch.Tensor],
    scale: float,
    activation: Activation,
    cu_seqlens: Optional[torch.Tensor],
    output_final_state: bool,
) -> Result:
    """The official kernel for training and long inputs, of checked arguments."""
    run = official.kernel(official.CHUNK_GATED_DELTA_RULE)
    return _official(run, q, k, v, g, beta, initial_state, scale, activation, cu_seqlens, output_final_state)


def official_tokens(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    g: Optional[torch.Tensor],
    beta: torch.Tensor,
    initial_state: Optional[torch.Tensor],
    scale: float,
    activation: Activation,
    cu_seqlens: Optional[torch.Tensor],
    output_final_state: bool,
    gk: Optional[torch.Tensor],
    gv: Optional[torch.Tensor],
) -> Result:
    """The official kernel for decoding, of checked arguments."""
    run = official.kernel(official.RECURRENT_GATED_DELTA_RULE)
    return _official(
        run, q, k, v, g, beta, initial_state, scale, activation, cu_seqlens, output_final_state, gk=gk, gv=gv
    )


def _official(
    run: Callable, q: Any, k: Any, v: Any, g: Any, beta: Any, state: Any, scale: float, activation: Activation,
    cu_seqlens: Optional[torch.Tensor], output_final_state: bool, **more: Any,
) -> Result:  # fmt: skip
    return run(
        q=q, k=k, v=v, g=g, beta=beta, scale=scale, initial_state=state, output_final_state=output_final_state,
        use_qk_l2norm_in_kernel=activation.l2norm, use_gate_in_kernel=activation.gate, A_log=activation.A_log,
        dt_bias=activation.dt_bias, use_beta_sigmoid_in_kernel=activation.sigmoid,
        allow_neg_eigval=activation.neg_eigval, cu_seqlens=None if cu_seqlens is None else cu_seqlens.long(), **more,
    )  # fmt: skip
