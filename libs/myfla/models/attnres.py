"""Attention residuals: each half block reads a softmax mixture of the outputs of earlier ones (arXiv 2603.15031)."""

from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
from torch import nn

from myfla.modules import RMSNorm
from myfla.modules.layernorm import rms_norm
from myfla.utils.dtypes import accumulation_dtype

__all__ = ["AttnRes", "attnres"]


def attnres(
    query: torch.Tensor,
    residuals: Sequence[torch.Tensor],
    rms_weight: torch.Tensor,
    output_rms_weight: Optional[torch.Tensor] = None,
    rms_eps: float = 1e-6,
) -> torch.Tensor:
    """Mix sources over depth: ``sum_l softmax_l(q . rms(r_l) * w) r_l``, then a norm if its weight is given.

    Args:
        query: ``[1, D]`` or ``[D]``.
        residuals: L sources ``[..., D]``.
        rms_weight: ``[D]``, of the norm of the keys.
        output_rms_weight: ``[D]``, of a norm of the mixture.
        rms_eps: of both norms.

    Returns:
        ``[..., D]`` in the format of the sources; sums are float32 (float64).

    Example:
        >>> attnres(torch.zeros(2), [torch.zeros(2), torch.ones(2)], torch.ones(2)).tolist()
        [0.5, 0.5]
    """
    kind = accumulation_dtype(*residuals)
    key_weight = query.reshape(-1).to(kind) * rms_weight.to(kind)
    values = [residual.to(kind) for residual in residuals]
    # One pass over each source: the norm of a key is a factor of its score.
    scores = [(v @ key_weight) * (v.square().mean(-1) + rms_eps).rsqrt() for v in values]
    shares = torch.stack(scores, dim=-1).softmax(dim=-1)
    mixed: Any = sum(share.unsqueeze(-1) * v for share, v in zip(shares.unbind(-1), values))
    if output_rms_weight is not None:
        mixed = rms_norm(mixed, output_rms_weight.to(kind), None, eps=rms_eps)
    return mixed.to(residuals[0].dtype)


class AttnRes:
    """How attention residuals change a block and a model.

    The sum of all half blocks since the last boundary is one source; at a boundary it is put aside and a new sum
    begins. Boundaries come every ``attnres_block_size`` half blocks; the first half of layer i is number 2 i.
    """

    @staticmethod
    def add_to_block(block: Any, config: Any, layer_idx: int, new: Dict[str, Any]) -> None:
        """Give a block its queries, key norms and boundaries, under the official names."""
        block.attn_res_proj, block.attn_res_norm = _query_and_norm(config, new)
        block.mlp_res_proj, block.mlp_res_norm = _query_and_norm(config, new)
        block.boundaries = tuple((2 * layer_idx + half) % config.attnres_block_size == 0 for half in (0, 1))

    @staticmethod
    def add_to_model(model: Any, config: Any, new: Dict[str, Any]) -> None:
        """Give a model the query and key norm of its last mixture."""
        model.res_proj, model.res_norm = _query_and_norm(config, new)

    @staticmethod
    def run_block(
        block: Any, hidden_states: torch.Tensor, states: Optional[List[torch.Tensor]], given: Dict[str, Any]
    ) -> Tuple[torch.Tensor, List[torch.Tensor]]:
        """The block's forward pass: the sum since the last boundary, and what was put aside."""
        total: Optional[torch.Tensor] = None
        if states is None:  # the embedding is the only source, and is also their sum
            states, mixed = [hidden_states], block.attn_norm(hidden_states)
        else:
            mixed, total, states = _mix(hidden_states, states, block.boundaries[0], block.attn_res_proj,
                                        block.attn_res_norm, block.attn_norm)
        mixed = block.attn(mixed, **given)[0]
        total = mixed if total is None else total + mixed
        mixed, total, states = _mix(total, states, block.boundaries[1], block.mlp_res_proj, block.mlp_res_norm,
                                    block.mlp_norm)
        mixed = block.mlp(mixed)
        return mixed if total is None else total + mixed, states

    @staticmethod
    def finish(model: Any, hidden_states: torch.Tensor, states: List[torch.Tensor]) -> torch.Tensor:
        """The model's last mixture, its norm included."""
        return _mix(hidden_states, states, False, model.res_proj, model.res_norm, model.norm)[0]


def _query_and_norm(config: Any, new: Dict[str, Any]) -> Tuple[nn.Linear, RMSNorm]:
    query = nn.Linear(config.hidden_size, 1, bias=False, **new)
    setattr(query, "is_attnres_query", True)  # begins at zero: all sources count alike
    return query, RMSNorm(config.hidden_size, eps=config.norm_eps, **new)


def _mix(
    total: torch.Tensor, states: List[torch.Tensor], boundary: bool, query: nn.Linear, keys: Any, norm: Any
) -> Tuple[torch.Tensor, Optional[torch.Tensor], List[torch.Tensor]]:
    """The mixture of all sources; then the sum goes on, or at a boundary is put aside."""
    sources = [*states, total]
    mixed = attnres(query.weight, sources, keys.weight, norm.weight, keys.eps)
    return (mixed, None, sources) if boundary else (mixed, total, states)
