"""The DeltaNet language model (arXiv 2406.06484), with the parameters and results of fla 0.6.0."""

from myfla.layers.delta_net import DeltaNet
from myfla.models.delta_net.configuration_delta_net import DeltaNetConfig
from myfla.models.modeling_utils import FLAForCausalLM, FLAModel, FLAPreTrainedModel
from myfla.models.recurrent_stack import RecurrentBlock, RecurrentStack

__all__ = ["DeltaNetBlock", "DeltaNetForCausalLM", "DeltaNetModel", "DeltaNetPreTrainedModel", "DeltaNetStack"]


class DeltaNetBlock(RecurrentBlock):
    """A `RecurrentBlock` around `DeltaNet`."""

    mixer = DeltaNet
    mixer_fields = ("expand_k", "expand_v", "num_heads", "use_beta", "use_gate", "use_short_conv", "conv_size",
                    "allow_neg_eigval", "qk_activation", "qk_norm")


class DeltaNetStack(RecurrentStack):
    """Embedding, blocks, norm: the parts of a DeltaNet model."""

    block = DeltaNetBlock
    state_fields = ("hidden_size", "num_hidden_layers", "num_heads", "expand_k", "expand_v", "use_short_conv",
                    "conv_size", "allow_neg_eigval")


class DeltaNetPreTrainedModel(FLAPreTrainedModel):
    """Base of the two models."""

    config_class = DeltaNetConfig


class DeltaNetModel(DeltaNetStack, FLAModel, DeltaNetPreTrainedModel):
    """Embedding, blocks, norm.

    Args:
        config: a `DeltaNetConfig`.
        device, dtype: of the parameters.

    Example:
        >>> config = DeltaNetConfig(hidden_size=16, num_heads=2, num_hidden_layers=2, vocab_size=9)
        >>> DeltaNetModel(config)(torch.tensor([[1, 2, 3]])).last_hidden_state.shape
        torch.Size([1, 3, 16])
    """


class DeltaNetForCausalLM(FLAForCausalLM, DeltaNetPreTrainedModel):
    """A DeltaNet language model.

    Args:
        config: a `DeltaNetConfig`.
        device, dtype: of the parameters.

    Example:
        >>> config = DeltaNetConfig(hidden_size=16, num_heads=2, num_hidden_layers=2, vocab_size=9)
        >>> model = DeltaNetForCausalLM(config).eval()
        >>> ids = torch.tensor([[1, 5, 3]])
        >>> model(ids, labels=ids).logits.shape, model.generate(ids, max_new_tokens=4, eos_token_id=None).shape
        (torch.Size([1, 3, 9]), torch.Size([1, 7]))
    """

    model_class = DeltaNetModel
