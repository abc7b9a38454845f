"""The base classes of all models."""

from typing import Any, Dict, Optional, Type

import torch
from torch import nn

from myfla.models.generation import GenerationMixin
from myfla.models.language_model import LanguageModel
from myfla.models.pretrained import FLAPreTrainedModel
from myfla.models.stack import Stack

__all__ = ["FLAForCausalLM", "FLAModel", "FLAPreTrainedModel"]


class FLAModel(Stack, FLAPreTrainedModel):
    """Embedding, blocks and norm. Subclasses are `Stack` s that say which.

    Args:
        config: the settings.
        device, dtype: of the parameters.
    """

    def __init__(self, config: Any, *, device: Any = None, dtype: Optional[torch.dtype] = None) -> None:
        super().__init__(config)
        self.build(config, device, dtype)


class FLAForCausalLM(LanguageModel, FLAPreTrainedModel, GenerationMixin):
    """A model and an output projection. Subclasses say which model.

    Args:
        config: the settings.
        device, dtype: of the parameters.

    Attributes:
        model: the `FLAModel`.
        lm_head: the output projection, without bias.
        criterion: None, or the loss to compute; see `LanguageModel`.
    """

    model_class: Type[FLAModel] = FLAModel
    headless = False

    def __init__(self, config: Any, *, device: Any = None, dtype: Optional[torch.dtype] = None) -> None:
        super().__init__(config)
        self.model = self.model_class(config, device=device, dtype=dtype)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False, device=device, dtype=dtype)
        self.criterion: Any = None
        self.model.init_head(self.lm_head)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Make the output projection the embedding, if the config says so."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embeddings.weight

    def _saved_tensors(self) -> Dict[str, torch.Tensor]:
        tensors = dict(self.state_dict())
        if self.config.tie_word_embeddings:
            tensors.pop("lm_head.weight")
        return tensors
