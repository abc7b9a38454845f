"""The Gated DeltaProduct language model (arXiv 2502.10297), with the parameters and results of fla 0.6.0."""

from myfla.layers.gated_deltaproduct import GatedDeltaProduct
from myfla.models.gated_deltaproduct.configuration_gated_deltaproduct import GatedDeltaProductConfig
from myfla.models.modeling_utils import FLAForCausalLM, FLAModel, FLAPreTrainedModel
from myfla.models.recurrent_stack import RecurrentBlock, RecurrentStack

__all__ = [
    "GatedDeltaProductBlock",
    "GatedDeltaProductForCausalLM",
    "GatedDeltaProductModel",
    "GatedDeltaProductPreTrainedModel",
    "GatedDeltaProductStack",
]


class GatedDeltaProductBlock(RecurrentBlock):
    """A `RecurrentBlock` around `GatedDeltaProduct`."""

    mixer = GatedDeltaProduct
    mixer_fields = ("expand_v", "head_dim", "num_heads", "use_output_gate", "use_short_conv",
                    "conv_size", "use_forget_gate", "allow_neg_eigval", "num_householder")


class GatedDeltaProductStack(RecurrentStack):
    """Embedding, blocks, norm: the parts of a Gated DeltaProduct model."""

    block = GatedDeltaProductBlock
    state_fields = ("hidden_size", "num_hidden_layers", "head_dim", "num_heads", "expand_v", "use_short_conv",
                    "conv_size", "use_forget_gate", "allow_neg_eigval", "num_householder")


class GatedDeltaProductPreTrainedModel(FLAPreTrainedModel):
    """Base of the two models."""

    config_class = GatedDeltaProductConfig


class GatedDeltaProductModel(GatedDeltaProductStack, FLAModel, GatedDeltaProductPreTrainedModel):
    """Embedding, blocks, norm.

    Args:
        config: a `GatedDeltaProductConfig`.
        device, dtype: of the parameters.

    Example:
        >>> config = GatedDeltaProductConfig(hidden_size=16, head_dim=8, num_heads=2, num_hidden_layers=2, vocab_size=9)
        >>> GatedDeltaProductModel(config)(torch.tensor([[1, 2, 3]])).last_hidden_state.shape
        torch.Size([1, 3, 16])
    """


class GatedDeltaProductForCausalLM(FLAForCausalLM, GatedDeltaProductPreTrainedModel):
    """A Gated DeltaProduct language model.

    Args:
        config: a `GatedDeltaProductConfig`.
        device, dtype: of the parameters.

    Example:
        >>> config = GatedDeltaProductConfig(hidden_size=16, head_dim=8, num_heads=2, num_hidden_layers=2, vocab_size=9)
        >>> model = GatedDeltaProductForCausalLM(config).eval()
        >>> ids = torch.tensor([[1, 5, 3]])
        >>> model(ids, labels=ids).logits.shape, model.generate(ids, max_new_tokens=4, eos_token_id=None).shape
        (torch.Size([1, 3, 9]), torch.Size([1, 7]))
    """

    model_class = GatedDeltaProductModel
