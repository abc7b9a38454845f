"""The gated delta rule and Kimi Delta Attention as models of transformers call them, on this package's ops.

Every function is handed all keywords of the model's forward; those that are not its own are passed over.
"""

import inspect
from typing import Any, Callable, Dict, Optional, Tuple

import torch

from myfla.integrations.packing import packed_offsets
from myfla.ops.gated_delta_rule import chunk_gated_delta_rule as chunk_op
from myfla.ops.gated_delta_rule import fused_recurrent_gated_delta_rule as recurrent_op
from myfla.ops.kda import chunk_kda, fused_recurrent_kda

Result = Tuple[torch.Tensor, Optional[torch.Tensor]]

# Those chunk sizes that transformers takes and the op does not would change nothing but rounding.
_KEPT = {"backend", "legacy", "chunk_size"}
_OPTIONS = {op: frozenset(inspect.signature(op).parameters) - _KEPT for op in (chunk_op, recurrent_op)}


def chunk_gated_delta_rule(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs: Any) -> Result:
    """`myfla.ops.gated_delta_rule.chunk_gated_delta_rule` as transformers calls it.

    Args:
        query, key: ``[B, T, H, K]``.
        value: ``[B, T, HV, V]``.
        **kwargs: the op's options, among them ``g`` and ``beta`` ``[B, T, HV]``; ``cu_seqlens``, ``cu_seq_lens_q``
            or ``seq_idx`` for packed sequences. Other keywords belong to other functions and are passed over.

    Returns:
        ``[B, T, HV, V]`` in the query's dtype; the final states ``[N, HV, K, V]``, or None.

    Example:
        >>> x, g = torch.ones(1, 3, 1, 2), torch.zeros(1, 3, 1)
        >>> o, state = chunk_gated_delta_rule(x, x, x, g=g, beta=g, output_final_state=True, output_router_logits=False)
        >>> tuple(o.shape), tuple(state.shape)
        ((1, 3, 1, 2), (1, 1, 2, 2))
    """
    return _run(chunk_op, query, key, value, kwargs)


def recurrent_gated_delta_rule(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **kwargs: Any) -> Result:
    """`myfla.ops.gated_delta_rule.fused_recurrent_gated_delta_rule`, as `chunk_gated_delta_rule` above.

    Example:
        >>> x, g = torch.ones(1, 1, 1, 2), torch.zeros(1, 1, 1)
        >>> recurrent_gated_delta_rule(x, x, x, g=g, beta=g)[1] is None
        True
    """
    return _run(recurrent_op, query, key, value, kwargs)


def chunk_kimi_delta_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    **kwargs: Any,
) -> Result:
    """`myfla.ops.kda.chunk_kda` as transformers calls it.

    Args:
        query, key, g: ``[B, T, H, K]``; g is the log decay.
        value: ``[B, T, H, V]``.
        beta: ``[B, T, H]`` write strength.
        initial_state: ``[N, H, K, V]``, zeros by default.
        output_final_state: also return the states after the last tokens.
        use_qk_l2norm_in_kernel: normalise queries and keys first.
        **kwargs: ``cu_seqlens``, ``cu_seq_lens_q`` or ``seq_idx`` for packed sequences; others are passed over.

    Returns:
        ``[B, T, H, V]`` in the query's dtype; the final states ``[N, H, K, V]``, or None.

    Example:
        >>> x = torch.ones(1, 3, 1, 2)
        >>> chunk_kimi_delta_attention(x, x, x, g=-x, beta=x[..., 0])[0].shape
        torch.Size([1, 3, 1, 2])
    """
    o, state = chunk_kda(
        query, key, value, g, beta, initial_state=initial_state, output_final_state=output_final_state,
        use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, cu_seqlens=packed_offsets(kwargs),
    )  # fmt: skip
    return o.to(query.dtype), state


def recurrent_kimi_delta_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    g: torch.Tensor,
    beta: torch.Tensor,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: bool = False,
    use_qk_l2norm_in_kernel: bool = False,
    **kwargs: Any,
) -> Result:
    """`chunk_kimi_delta_attention`, token by token.

    Example:
        >>> x = torch.ones(1, 1, 1, 2)
        >>> recurrent_kimi_delta_attention(x, x, x, g=-x, beta=x[..., 0])[0].flatten().tolist()[0] > 1
        True
    """
    o, state = fused_recurrent_kda(
        query, key, value, g, beta, initial_state=initial_state, output_final_state=output_final_state,
        use_qk_l2norm_in_kernel=use_qk_l2norm_in_kernel, cu_seqlens=packed_offsets(kwargs),
    )  # fmt: skip
    return o.to(query.dtype), state


def _run(op: Callable, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kwargs: Dict[str, Any]) -> Any:
    options = {name: x for name, x in kwargs.items() if name in _OPTIONS[op]}
    options["cu_seqlens"] = packed_offsets(kwargs)
    return op(query, key, value, **options)
