"""The GatedDeltaNet language model (arXiv 2412.06464), with the parameters and results of fla 0.6.0."""

from myfla.layers.gated_deltanet import GatedDeltaNet
from myfla.models.gated_deltanet.configuration_gated_deltanet import GatedDeltaNetConfig
from myfla.models.modeling_utils import FLAForCausalLM, FLAModel, FLAPreTrainedModel
from myfla.models.recurrent_stack import RecurrentBlock, RecurrentStack

__all__ = [
    "GatedDeltaNetBlock",
    "GatedDeltaNetForCausalLM",
    "GatedDeltaNetModel",
    "GatedDeltaNetPreTrainedModel",
    "GatedDeltaNetStack",
]


class GatedDeltaNetBlock(RecurrentBlock):
    """A `RecurrentBlock` around `GatedDeltaNet`."""

    mixer = GatedDeltaNet
    mixer_fields = ("expand_v", "head_dim", "num_heads", "num_v_heads", "use_gate", "use_short_conv",
                    "allow_neg_eigval", "conv_size", "output_gate_activation")


class GatedDeltaNetStack(RecurrentStack):
    """Embedding, blocks, norm: the parts of a GatedDeltaNet model."""

    block = GatedDeltaNetBlock
    state_fields = ("hidden_size", "num_hidden_layers", "head_dim", "num_heads", "num_v_heads", "expand_v",
                    "use_short_conv", "conv_size", "allow_neg_eigval")


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
