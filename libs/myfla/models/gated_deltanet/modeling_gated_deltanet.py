"""The GatedDeltaNet language model (arXiv 2412.06464), with the parameters and results of fla 0.6.0."""

from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import nn

from myfla.layers.attn import Attention
from myfla.layers.gated_deltanet import GatedDeltaNet
from myfla.models.configuration_utils import get_attention_spec
from myfla.models.gated_deltanet.attnres import AttnRes
from myfla.models.gated_deltanet.configuration_gated_deltanet import GatedDeltaNetConfig
from myfla.models.modeling_utils import FLAForCausalLM, FLAModel, FLAPreTrainedModel
from myfla.models.stack import Stack, normal_
from myfla.modules import GatedMLP, RMSNorm

__all__ = [
    "GatedDeltaNetBlock",
    "GatedDeltaNetForCausalLM",
    "GatedDeltaNetModel",
    "GatedDeltaNetPreTrainedModel",
    "GatedDeltaNetStack",
]


class GatedDeltaNetBlock(nn.Module):
    """``h = x + attn(attn_norm(x))``, then ``h + mlp(mlp_norm(h))``; with attention residuals see `AttnRes`.

    Args:
        config: a `GatedDeltaNetConfig`.
        layer_idx: number of the block.
        device, dtype: of the parameters.
    """

    def __init__(self, config: Any, layer_idx: int, *, device: Any = None, dtype: Optional[torch.dtype] = None) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        new = {"device": device, "dtype": dtype}
        self.attn_norm = RMSNorm(config.hidden_size, eps=config.norm_eps, **new)
        self.attn = _mixer(config, layer_idx, new)
        self.mlp_norm = RMSNorm(config.hidden_size, eps=config.norm_eps, **new)
        self.mlp = GatedMLP(
            hidden_size=config.hidden_size, hidden_ratio=config.hidden_ratio,
            intermediate_size=config.intermediate_size, hidden_act=config.hidden_act,
            fuse_swiglu=config.fuse_swiglu, **new,
        )  # fmt: skip
        self.use_attnres = config.attnres_block_size is not None
        if self.use_attnres:
            AttnRes.add_to_block(self, config, layer_idx, new)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Optional[torch.Tensor] = None,
        past_key_values: Any = None,
        use_cache: Optional[bool] = False,
        output_attentions: Optional[bool] = False,
        attnres_states: Optional[List[torch.Tensor]] = None,
        **kwargs: Any,
    ) -> Tuple[torch.Tensor, None, Any, Optional[List[torch.Tensor]]]:
        """Mix along time, then channels.

        Args:
            hidden_states: ``[B, T, hidden_size]``.
            attention_mask, past_key_values, use_cache, cu_seqlens: see `myfla.layers.GatedDeltaNet`.
            attnres_states: what the blocks before have put aside; None in the first.

        Returns:
            ``(hidden_states, None, past_key_values, attnres_states)``.
        """
        given = dict(attention_mask=attention_mask, past_key_values=past_key_values, use_cache=use_cache, **kwargs)
        if self.use_attnres:
            hidden_states, attnres_states = AttnRes.run_block(self, hidden_states, attnres_states, given)
            return hidden_states, None, past_key_values, attnres_states
        mixed, _, past_key_values = self.attn(self.attn_norm(hidden_states), **given)
        mixed, residual = self.mlp_norm(mixed, residual=hidden_states, prenorm=True)
        return residual + self.mlp(mixed), None, past_key_values, None


class GatedDeltaNetStack(Stack):
    """Embedding, blocks, norm: the parts of a GatedDeltaNet model."""

    carried = "attnres_states"
    state_fields = ("hidden_size", "num_hidden_layers", "head_dim", "num_heads", "num_v_heads", "expand_v",
                    "use_short_conv", "conv_size", "allow_neg_eigval")

    def build(self, config: Any, device: Any = None, dtype: Optional[torch.dtype] = None) -> None:
        """Make the parts, with weights by the official law."""
        self.padding_idx, self.vocab_size = config.pad_token_id, config.vocab_size
        new = {"device": device, "dtype": dtype}
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id, **new)
        self.layers = nn.ModuleList(GatedDeltaNetBlock(config, i, **new) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, eps=config.norm_eps, **new)
        self.use_attnres = config.attnres_block_size is not None
        if self.use_attnres:
            AttnRes.add_to_model(self, config, new)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Conv1d, nn.Embedding)):  # the rest begins as it should
                self.init_module(module)

    def init_module(self, module: nn.Module) -> None:
        """Draw a module's parameters: normal with ``initializer_range``, biases 0, norms 1, decays as the layer."""
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Embedding)):
            normal_(module, 0.0 if getattr(module, "is_attnres_query", False) else self.config.initializer_range)
        elif isinstance(module, GatedDeltaNet):
            module._reset_decay()
        elif hasattr(module, "reset_parameters"):
            getattr(module, "reset_parameters")()

    def init_head(self, head: nn.Linear) -> None:
        """Draw the output map."""
        self.init_module(head)

    def _finish(self, hidden_states: torch.Tensor, carried: Any) -> torch.Tensor:
        if self.use_attnres:
            return AttnRes.finish(self, hidden_states, carried)
        return self.norm(hidden_states)


class GatedDeltaNetPreTrainedModel(FLAPreTrainedModel):
    """Base of the two models."""

    config_class = GatedDeltaNetConfig


class GatedDeltaNetModel(GatedDeltaNetStack, FLAModel, GatedDeltaNetPreTrainedModel):
    """Embedding, blocks, norm.

    Args:
        config: a `GatedDeltaNetConfig`.
        device, dtype: of the parameters.

    Example:
        >>> config = GatedDeltaNetConfig(hidden_size=16, head_dim=8, num_heads=2, num_hidden_layers=2, vocab_size=9)
        >>> GatedDeltaNetModel(config)(torch.tensor([[1, 2, 3]])).last_hidden_state.shape
        torch.Size([1, 3, 16])
    """


class GatedDeltaNetForCausalLM(FLAForCausalLM, GatedDeltaNetPreTrainedModel):
    """A GatedDeltaNet language model.

    Args:
        config: a `GatedDeltaNetConfig`.
        device, dtype: of the parameters.

    Example:
        >>> config = GatedDeltaNetConfig(hidden_size=16, head_dim=8, num_heads=2, num_hidden_layers=2, vocab_size=9)
        >>> model = GatedDeltaNetForCausalLM(config).eval()
        >>> ids = torch.tensor([[1, 5, 3]])
        >>> model(ids, labels=ids).logits.shape, model.generate(ids, max_new_tokens=4, eos_token_id=None).shape
        (torch.Size([1, 3, 9]), torch.Size([1, 7]))
    """

    model_class = GatedDeltaNetModel


def _mixer(config: Any, layer_idx: int, new: Dict[str, Any]) -> nn.Module:
    """What a block mixes along time with: the recurrent layer, or softmax attention where the config says so."""
    spec = get_attention_spec(config.attn, layer_idx)
    if spec is not None:
        named = ("num_heads", "num_kv_heads", "qkv_bias", "window_size", "rope_theta")
        return Attention(
            hidden_size=config.hidden_size, layer_idx=layer_idx,
            max_position_embeddings=config.max_position_embeddings, **{name: spec[name] for name in named}, **new,
        )  # fmt: skip
    return GatedDeltaNet(
        hidden_size=config.hidden_size, expand_v=config.expand_v, head_dim=config.head_dim,
        num_heads=config.num_heads, num_v_heads=config.num_v_heads, mode=config.attn_mode,
        use_gate=config.use_gate, use_short_conv=config.use_short_conv, allow_neg_eigval=config.allow_neg_eigval,
        conv_size=config.conv_size, layer_idx=layer_idx, norm_eps=config.norm_eps,
        output_gate_activation=config.output_gate_activation, backend=getattr(config, "backend", "auto"), **new,
    )  # fmt: skip
