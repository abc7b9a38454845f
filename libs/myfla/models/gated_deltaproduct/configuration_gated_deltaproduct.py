"""The settings of a Gated DeltaProduct model, under the official names."""

from typing import Any, Optional

from myfla.models.recurrent_config import RecurrentConfig

__all__ = ["GatedDeltaProductConfig"]


class GatedDeltaProductConfig(RecurrentConfig):
    """Settings of `GatedDeltaProductModel` and `GatedDeltaProductForCausalLM`; names and defaults of fla 0.6.0.

    Args:
        attn_mode: ``"chunk"`` or ``"fused_recurrent"``, the layers' ``mode``.
        conv_size, head_dim, num_heads, hidden_size, expand_v, use_output_gate, use_short_conv, use_forget_gate,
        allow_neg_eigval, num_householder: of the layers, see `myfla.layers.GatedDeltaProduct`.
        max_position_embeddings: kept for the file.
        hidden_ratio, intermediate_size, hidden_act: of the feed-forward layers, see `myfla.modules.GatedMLP`.
        num_hidden_layers: number of blocks.
        norm_eps: of all norms.
        attn: None, or which blocks have softmax attention, see `GatedDeltaNetConfig`.
        use_cache: whether a model in evaluation keeps states unless told otherwise.
        pad_token_id, bos_token_id, eos_token_id: token ids.
        tie_word_embeddings: whether the output projection is the embedding.
        initializer_range: standard deviation of fresh weights.
        fuse_norm, fuse_swiglu, fuse_cross_entropy: kept for the file; the results are the same.
        fuse_linear_cross_entropy: compute the loss in parts that never hold all logits; none are returned with it.
        use_l2warp: pull the largest logit of each token towards zero, see `myfla.models.loss.l2_warp`.
        vocab_size: number of tokens.
        attnres_block_size: None, or attention residuals (arXiv 2603.15031) over blocks of this many half layers.
        kwargs: any other key; kept.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> GatedDeltaProductConfig(hidden_size=64, my_note="kept").my_note
        'kept'
    """

    model_type = "gated_deltaproduct"

    def __init__(
        self,
        attn_mode: str = "chunk",
        conv_size: int = 4,
        head_dim: int = 256,
        num_heads: int = 6,
        hidden_size: int = 2048,
        expand_v: float = 2.0,
        use_output_gate: bool = True,
        use_short_conv: bool = True,
        max_position_embeddings: int = 2048,
        hidden_ratio: Optional[int] = 4,
        intermediate_size: Optional[int] = None,
        hidden_act: str = "swish",
        num_hidden_layers: int = 21,
        norm_eps: float = 1e-6,
        attn: Any = None,
        use_cache: bool = True,
        pad_token_id: Optional[int] = None,
        bos_token_id: int = 1,
        eos_token_id: int = 2,
        tie_word_embeddings: bool = False,
        initializer_range: float = 0.02,
        fuse_norm: bool = True,
        fuse_swiglu: bool = True,
        fuse_cross_entropy: bool = True,
        fuse_linear_cross_entropy: bool = False,
        use_l2warp: bool = False,
        vocab_size: int = 32000,
        use_forget_gate: bool = False,
        allow_neg_eigval: bool = False,
        num_householder: int = 1,
        attnres_block_size: Optional[int] = None,
        **kwargs: Any,
    ) -> None:
        self._settle(locals(), ("head_dim", "num_heads", "num_householder"), kwargs)
