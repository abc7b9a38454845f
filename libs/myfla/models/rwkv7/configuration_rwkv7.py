"""The settings of an RWKV-7 model, under the official names."""

from typing import Any, List, Optional, Union

from myfla.models.configuration import ModelConfig
from myfla.models.configuration_utils import (
    AttentionConfigBase,
    check_sizes,
    refuse_softmax_attention,
    validate_loss_config,
)
from myfla.utils.errors import value_error

__all__ = ["RWKV7Config"]

NAME = "RWKV7Config"


class RWKV7Config(AttentionConfigBase, ModelConfig):
    """Settings of `RWKV7Model` and `RWKV7ForCausalLM`; names and defaults of fla 0.6.0.

    Args:
        attn_mode: ``"chunk"`` or ``"fused_recurrent"``, the layers' ``mode``.
        hidden_size, head_dim, num_heads, decay_low_rank_dim, gate_low_rank_dim, a_low_rank_dim, v_low_rank_dim: of
            the layers, see `myfla.layers.RWKV7Attention`; of head_dim and num_heads one may be None.
        hidden_ratio, intermediate_size, hidden_act: of the feed-forward layers, see `RWKV7FeedForward`.
        num_hidden_layers: number of blocks.
        max_position_embeddings: kept for the file; there are no positions.
        norm_first: whether block 0 begins with one more norm.
        norm_bias, norm_eps: of the norms of the blocks.
        attn: must be None; the official class does not run with layers of softmax attention either.
        use_cache: whether a model in evaluation keeps states unless told otherwise.
        pad_token_id, bos_token_id, eos_token_id: token ids.
        tie_word_embeddings: whether the output projection is the embedding.
        initializer_range: kept for the file; fresh weights follow RWKV-LM.
        fuse_norm: the layers' choice between two ways to scale a key to length one.
        fuse_cross_entropy: kept for the file; the result is the same.
        fuse_linear_cross_entropy: compute the loss in parts that never hold all logits; none are returned with it.
        use_l2warp: pull the largest logit of each token towards zero, see `myfla.models.loss.l2_warp`.
        vocab_size: number of tokens.
        value_dim: channels of all values together, a multiple of ``hidden_size``: one number, or one for each block;
            kept as a list.
        kwargs: any other key; kept.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> RWKV7Config(hidden_size=128, num_hidden_layers=2).value_dim
        [128, 128]
    """

    model_type = "rwkv7"

    def __init__(
        self,
        attn_mode: str = "chunk",
        hidden_size: int = 2048,
        hidden_ratio: Optional[float] = 4,
        intermediate_size: Optional[int] = None,
        num_hidden_layers: int = 24,
        head_dim: Optional[int] = 64,
        num_heads: Optional[int] = None,
        decay_low_rank_dim: Optional[int] = 64,
        gate_low_rank_dim: Optional[int] = 128,
        a_low_rank_dim: Optional[int] = 64,
        v_low_rank_dim: Optional[int] = 16,
        hidden_act: str = "sqrelu",
        max_position_embeddings: int = 2048,
        norm_first: bool = True,
        norm_bias: bool = True,
        norm_eps: float = 1e-5,
        attn: Any = None,
        use_cache: bool = True,
        pad_token_id: Optional[int] = None,
        bos_token_id: int = 1,
        eos_token_id: int = 2,
        tie_word_embeddings: bool = False,
        initializer_range: float = 0.02,
        fuse_norm: bool = True,
        fuse_cross_entropy: bool = True,
        fuse_linear_cross_entropy: bool = False,
        use_l2warp: bool = True,
        vocab_size: int = 32000,
        value_dim: Union[int, List[int], None] = None,
        **kwargs: Any,
    ) -> None:
        check_sizes(NAME, hidden_size=hidden_size, head_dim=head_dim, num_heads=num_heads, vocab_size=vocab_size,
                    num_hidden_layers=num_hidden_layers, intermediate_size=intermediate_size)
        validate_loss_config(
            fuse_cross_entropy=fuse_cross_entropy, fuse_linear_cross_entropy=fuse_linear_cross_entropy, who=NAME)
        if head_dim is None and num_heads is not None:
            head_dim = hidden_size // num_heads
        elif num_heads is None and head_dim is not None:
            num_heads = hidden_size // head_dim
        self.hidden_size, self.num_hidden_layers, self.vocab_size = hidden_size, num_hidden_layers, vocab_size
        self.attn_mode, self.attn = attn_mode, attn
        self.head_dim, self.num_heads = head_dim, num_heads
        self.value_dim = _value_dims(value_dim, hidden_size, num_hidden_layers)
        self.decay_low_rank_dim, self.gate_low_rank_dim = decay_low_rank_dim, gate_low_rank_dim
        self.a_low_rank_dim, self.v_low_rank_dim = a_low_rank_dim, v_low_rank_dim
        self.hidden_ratio, self.intermediate_size, self.hidden_act = hidden_ratio, intermediate_size, hidden_act
        self.max_position_embeddings, self.norm_first, self.norm_bias = max_position_embeddings, norm_first, norm_bias
        self.norm_eps, self.initializer_range, self.use_cache = norm_eps, initializer_range, use_cache
        self.fuse_norm, self.fuse_cross_entropy = fuse_norm, fuse_cross_entropy
        self.fuse_linear_cross_entropy, self.use_l2warp = fuse_linear_cross_entropy, use_l2warp
        super().__init__(pad_token_id=pad_token_id, bos_token_id=bos_token_id, eos_token_id=eos_token_id,
                         tie_word_embeddings=tie_word_embeddings, **kwargs)

    def _parse_attention_config(self, attn: Any) -> Any:
        refuse_softmax_attention(NAME, attn)
        return attn


def _value_dims(value_dim: Any, hidden_size: int, depth: int) -> List[int]:
    """One number of value channels for each block."""
    if value_dim is None:
        return [hidden_size] * depth
    sizes = [value_dim] * depth if isinstance(value_dim, int) else list(value_dim)
    if len(sizes) != depth:
        raise value_error(NAME, "value_dim", f"must be one number or {depth}, one for each block", value_dim)
    check_sizes(NAME, **{f"value_dim[{i}]": size for i, size in enumerate(sizes)})
    if any(size % hidden_size for size in sizes):
        raise value_error(NAME, "value_dim", f"must be a multiple of hidden_size={hidden_size}", value_dim)
    return sizes
