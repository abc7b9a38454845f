"""The Kimi Delta Attention language model (arXiv 2510.26692), with the parameters and results of fla 0.6.0."""

from myfla.layers.kda import KimiDeltaAttention
from myfla.models.kda.configuration_kda import KDAConfig
from myfla.models.modeling_utils import FLAForCausalLM, FLAModel, FLAPreTrainedModel
from myfla.models.recurrent_stack import RecurrentBlock, RecurrentStack

__all__ = ["KDABlock", "KDAForCausalLM", "KDAModel", "KDAPreTrainedModel", "KDAStack"]


class KDABlock(RecurrentBlock):
    """A `RecurrentBlock` around `KimiDeltaAttention`."""

    mixer = KimiDeltaAttention
    mixer_fields = ("expand_v", "head_dim", "num_heads", "num_v_heads", "use_short_conv", "allow_neg_eigval",
                    "safe_gate", "lower_bound", "conv_size")


class KDAStack(RecurrentStack):
    """Embedding, blocks, norm: the parts of a Kimi Delta Attention model."""

    block = KDABlock
    state_fields = ("hidden_size", "num_hidden_layers", "head_dim", "num_heads", "num_v_heads", "expand_v",
                    "use_short_conv", "conv_size", "allow_neg_eigval")


class KDAPreTrainedModel(FLAPreTrainedModel):
    """Base of the two models."""

    config_class = KDAConfig


class KDAModel(KDAStack, FLAModel, KDAPreTrainedModel):
    """Embedding, blocks, norm.

    Args:
        config: a `KDAConfig`.
        device, dtype: of the parameters.

    Example:
        >>> config = KDAConfig(hidden_size=16, head_dim=8, num_heads=2, num_hidden_layers=2, vocab_size=9)
        >>> KDAModel(config)(torch.tensor([[1, 2, 3]])).last_hidden_state.shape
        torch.Size([1, 3, 16])
    """


class KDAForCausalLM(FLAForCausalLM, KDAPreTrainedModel):
    """A Kimi Delta Attention language model.

    Args:
        config: a `KDAConfig`.
        device, dtype: of the parameters.

    Example:
        >>> config = KDAConfig(hidden_size=16, head_dim=8, num_heads=2, num_hidden_layers=2, vocab_size=9)
        >>> model = KDAForCausalLM(config).eval()
        >>> ids = torch.tensor([[1, 5, 3]])
        >>> model(ids, labels=ids).logits.shape, model.generate(ids, max_new_tokens=4, eos_token_id=None).shape
        (torch.Size([1, 3, 9]), torch.Size([1, 7]))
    """

    model_class = KDAModel
