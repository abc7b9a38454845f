"""The RWKV-7 language model (arXiv 2503.14456), with the parameters and results of fla 0.6.0."""

import math
from typing import Any, Dict, Optional, Tuple, Union

import torch
from torch import nn

from myfla.layers.lora import orthogonal_
from myfla.layers.rwkv7 import RWKV7Attention
from myfla.models.checkpoint_names import split_mixes
from myfla.models.language_model import LanguageModel
from myfla.models.modeling_utils import FLAForCausalLM, FLAModel, FLAPreTrainedModel
from myfla.models.outputs import CausalLMOutputWithPast
from myfla.models.rwkv7.configuration_rwkv7 import RWKV7Config
from myfla.models.rwkv7.feed_forward import RWKV7FeedForward
from myfla.models.stack import Stack
from myfla.modules import LayerNorm

__all__ = [
    "RWKV7Block", "RWKV7ForCausalLM", "RWKV7LanguageModel", "RWKV7Model", "RWKV7PreTrainedModel", "RWKV7Stack",
]  # fmt: skip

SMALLEST = 1e-4
"""Fresh embeddings are uniform between minus and plus this."""


class RWKV7Block(nn.Module):
    """``h = x + attn(attn_norm(x))``, then ``h + ffn(ffn_norm(h))``; block 0 normalises x first.

    Args:
        config: an `RWKV7Config`.
        layer_idx: number of the block.
        device, dtype: of the parameters.
    """

    def __init__(self, config: Any, layer_idx: int, *, device: Any = None, dtype: Optional[torch.dtype] = None) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        new = {"device": device, "dtype": dtype}
        if config.norm_first and layer_idx == 0:
            self.pre_norm = _norm(config, new)
        self.attn_norm = _norm(config, new)
        self.attn = RWKV7Attention(
            mode=config.attn_mode, hidden_size=config.hidden_size, head_dim=config.head_dim,
            num_heads=config.num_heads, decay_low_rank_dim=config.decay_low_rank_dim,
            gate_low_rank_dim=config.gate_low_rank_dim, a_low_rank_dim=config.a_low_rank_dim,
            v_low_rank_dim=config.v_low_rank_dim, norm_eps=config.norm_eps, fuse_norm=config.fuse_norm,
            layer_idx=layer_idx, value_dim=config.value_dim[layer_idx], num_hidden_layers=config.num_hidden_layers,
            backend=getattr(config, "backend", "auto"), **new,
        )  # fmt: skip
        self.ffn_norm = _norm(config, new)
        self.ffn = RWKV7FeedForward(
            hidden_size=config.hidden_size, hidden_ratio=config.hidden_ratio,
            intermediate_size=config.intermediate_size, hidden_act=config.hidden_act, layer_idx=layer_idx,
            num_hidden_layers=config.num_hidden_layers, **new,
        )  # fmt: skip

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Optional[torch.Tensor] = None,
        past_key_values: Any = None,
        use_cache: Optional[bool] = False,
        output_attentions: Optional[bool] = False,
        v_first: Optional[torch.Tensor] = None,
        cu_seqlens: Optional[torch.Tensor] = None,
        **kwargs: Any,
    ) -> Tuple[torch.Tensor, None, Any, torch.Tensor]:
        """Mix along time, then channels.

        Args:
            hidden_states: ``[B, T, hidden_size]``.
            attention_mask, past_key_values, use_cache, cu_seqlens: see `myfla.layers.RWKV7Attention`.
            v_first: ``[B, T, value_dim]``, the values of block 0; None in block 0.

        Returns:
            ``(hidden_states, None, past_key_values, v_first)``.
        """
        residual = self.pre_norm(hidden_states) if hasattr(self, "pre_norm") else hidden_states
        mixed, _, past_key_values, v_first = self.attn(
            self.attn_norm(residual), attention_mask=attention_mask, past_key_values=past_key_values,
            use_cache=use_cache, v_first=v_first, cu_seqlens=cu_seqlens, **kwargs,
        )  # fmt: skip
        mixed, residual = self.ffn_norm(mixed, residual, True)
        mixed, past_key_values = self.ffn(
            mixed, attention_mask, past_key_values, cu_seqlens=cu_seqlens, use_cache=use_cache, **kwargs)
        return residual + mixed, None, past_key_values, v_first


class RWKV7Stack(Stack):
    """Embedding, blocks, norm: the parts of an RWKV-7 model."""

    carried = "v_first"
    state_fields = ("hidden_size", "num_hidden_layers", "head_dim", "num_heads", "value_dim")

    def build(self, config: Any, device: Any = None, dtype: Optional[torch.dtype] = None) -> None:
        """Make the parts, with weights initialised as in the official model."""
        self.padding_idx, self.vocab_size = config.pad_token_id, config.vocab_size
        new = {"device": device, "dtype": dtype}
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id, **new)
        self.layers = nn.ModuleList(RWKV7Block(config, i, **new) for i in range(config.num_hidden_layers))
        self.norm = _norm(config, new)
        self.init_module(self.embeddings)  # the rest begins as it should
        self._register_load_state_dict_pre_hook(_convert)

    def init_module(self, module: nn.Module) -> None:
        """Draw a module's parameters; the two halves of a block initialise themselves."""
        if isinstance(module, nn.Embedding):
            nn.init.uniform_(module.weight, -SMALLEST, SMALLEST)
        elif isinstance(module, (RWKV7Attention, RWKV7FeedForward, LayerNorm)):
            module.reset_parameters()

    def init_head(self, head: nn.Linear) -> None:
        """Draw the output projection: orthogonal."""
        rows, columns = head.weight.shape
        orthogonal_(head.weight, gain=0.5 * math.sqrt(max(rows / columns, 1.0)))


class RWKV7PreTrainedModel(FLAPreTrainedModel):
    """Base of the two models."""

    config_class = RWKV7Config


class RWKV7Model(RWKV7Stack, FLAModel, RWKV7PreTrainedModel):
    """Embedding, blocks, norm.

    State dicts of older checkpoints, whose layers hold ``x_x``, are converted when they are loaded.

    Args:
        config: an `RWKV7Config`.
        device, dtype: of the parameters.

    Example:
        >>> config = RWKV7Config(hidden_size=16, head_dim=8, num_hidden_layers=2, vocab_size=9)
        >>> RWKV7Model(config)(torch.tensor([[1, 2, 3]])).last_hidden_state.shape
        torch.Size([1, 3, 16])
    """


class RWKV7LanguageModel(LanguageModel):
    """`LanguageModel` with the official order of this model's arguments."""

    def forward(  # type: ignore[override]
        self,
        input_ids: Optional[torch.Tensor] = None,
        attention_mask: Optional[torch.Tensor] = None,
        inputs_embeds: Optional[torch.Tensor] = None,
        past_key_values: Any = None,
        labels: Optional[torch.Tensor] = None,
        shift_labels: Optional[torch.Tensor] = None,
        use_cache: Optional[bool] = None,
        output_attentions: Optional[bool] = None,
        output_hidden_states: Optional[bool] = None,
        return_dict: Optional[bool] = None,
        logits_to_keep: Union[int, torch.Tensor, None] = 0,
        num_items_in_batch: Union[int, torch.Tensor, None] = None,
        **kwargs: Any,
    ) -> Union[Tuple[Any, ...], CausalLMOutputWithPast]:
        """See `LanguageModel.forward`; here ``shift_labels`` stands behind ``labels``."""
        return super().forward(
            input_ids, attention_mask, inputs_embeds, past_key_values, labels, use_cache, output_attentions,
            output_hidden_states, return_dict, logits_to_keep, num_items_in_batch, shift_labels=shift_labels, **kwargs,
        )  # fmt: skip


class RWKV7ForCausalLM(RWKV7LanguageModel, FLAForCausalLM, RWKV7PreTrainedModel):
    """An RWKV-7 language model.

    In a fresh one the blocks have no effect: their output projections are zero.

    Args:
        config: an `RWKV7Config`.
        device, dtype: of the parameters.

    Example:
        >>> config = RWKV7Config(hidden_size=16, head_dim=8, num_hidden_layers=2, vocab_size=9)
        >>> model = RWKV7ForCausalLM(config).eval()
        >>> ids = torch.tensor([[1, 5, 3]])
        >>> model(ids, labels=ids).logits.shape, model.generate(ids, max_new_tokens=4, eos_token_id=None).shape
        (torch.Size([1, 3, 9]), torch.Size([1, 7]))
    """

    model_class = RWKV7Model


def _norm(config: Any, new: Dict[str, Any]) -> LayerNorm:
    return LayerNorm(config.hidden_size, bias=config.norm_bias, eps=config.norm_eps, **new)


def _convert(state_dict: Dict[str, torch.Tensor], prefix: str, *others: Any) -> None:
    split_mixes(state_dict, prefix)
