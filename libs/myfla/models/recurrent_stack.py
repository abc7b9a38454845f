"""The blocks of a language model whose layers are of the delta rule's family: norm, mixing, norm, feed-forward."""

from typing import Any, Dict, List, Mapping, Optional, Tuple, Type

import torch
from torch import nn

from myfla.layers.attn import Attention
from myfla.layers.short_convs import ConvLayer
from myfla.models.attnres import AttnRes
from myfla.models.configuration_utils import get_attention_spec
from myfla.models.stack import Stack, normal_
from myfla.modules import GatedMLP, RMSNorm

__all__ = ["RecurrentBlock", "RecurrentStack"]


class RecurrentBlock(nn.Module):
    """``h = x + attn(attn_norm(x))``, then ``h + mlp(mlp_norm(h))``; with attention residuals see `AttnRes`.

    Args:
        config: of the model.
        layer_idx: number of the block.
        device, dtype: of the parameters.

    Attributes:
        mixer: the recurrent layer.
        mixer_fields: arguments of the layer that are fields of the config of the same name. ``mode``, ``norm_eps``,
            ``hidden_size`` and ``backend`` are handed on in any case.
    """

    mixer: Type[ConvLayer]
    mixer_fields: Tuple[str, ...]

    def __init__(self, config: Any, layer_idx: int, *, device: Any = None, dtype: Optional[torch.dtype] = None) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        new = {"device": device, "dtype": dtype}
        self.attn_norm = RMSNorm(config.hidden_size, eps=config.norm_eps, **new)
        self.attn = self._attention(config, layer_idx, new) or self.mixer(
            hidden_size=config.hidden_size, mode=config.attn_mode, layer_idx=layer_idx, norm_eps=config.norm_eps,
            backend=getattr(config, "backend", "auto"),
            **{name: getattr(config, name) for name in self.mixer_fields}, **new,
        )  # fmt: skip
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

    @staticmethod
    def _attention(config: Any, layer_idx: int, new: Mapping[str, Any]) -> Optional[nn.Module]:
        """Softmax attention in the recurrent layer's place, where the config says so."""
        spec = get_attention_spec(config.attn, layer_idx=layer_idx)
        if spec is None:
            return None
        named = ("num_heads", "num_kv_heads", "qkv_bias", "window_size", "rope_theta")
        return Attention(
            hidden_size=config.hidden_size, layer_idx=layer_idx,
            max_position_embeddings=config.max_position_embeddings, **{name: spec[name] for name in named}, **new,
        )  # fmt: skip


class RecurrentStack(Stack):
    """Embedding, blocks, norm.

    Attributes:
        block: the class of the blocks.
    """

    carried = "attnres_states"
    block: Type[RecurrentBlock]

    def build(self, config: Any, device: Any = None, dtype: Optional[torch.dtype] = None) -> None:
        """Make the parts, with weights initialised as in the official model."""
        self.padding_idx, self.vocab_size = config.pad_token_id, config.vocab_size
        new: Dict[str, Any] = {"device": device, "dtype": dtype}
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id, **new)
        self.layers = nn.ModuleList(self.block(config, i, **new) for i in range(config.num_hidden_layers))
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
        elif isinstance(module, ConvLayer):
            module._reset_decay()
        elif hasattr(module, "reset_parameters"):
            getattr(module, "reset_parameters")()

    def init_head(self, head: nn.Linear) -> None:
        """Draw the output projection."""
        self.init_module(head)

    def _finish(self, hidden_states: torch.Tensor, carried: Any) -> torch.Tensor:
        if self.use_attnres:
            return AttnRes.finish(self, hidden_states, carried)
        return self.norm(hidden_states)
