"""Load the model of a checkpoint folder by its ``model_type``."""

from pathlib import Path
from typing import Any, Dict, Tuple, Type, Union

from myfla.models.configuration import ModelConfig, read_json
from myfla.models.delta_net import DeltaNetConfig, DeltaNetForCausalLM, DeltaNetModel
from myfla.models.gated_deltanet import GatedDeltaNetConfig, GatedDeltaNetForCausalLM, GatedDeltaNetModel
from myfla.models.gated_deltaproduct import (
    GatedDeltaProductConfig,
    GatedDeltaProductForCausalLM,
    GatedDeltaProductModel,
)
from myfla.models.kda import KDAConfig, KDAForCausalLM, KDAModel
from myfla.models.modeling_utils import FLAForCausalLM, FLAModel
from myfla.models.rwkv7 import RWKV7Config, RWKV7ForCausalLM, RWKV7Model
from myfla.utils.errors import CheckpointError, message, nearest

__all__ = ["MODELS", "load_backbone", "load_config", "load_model"]

Classes = Tuple[Type[ModelConfig], Type[FLAModel], Type[FLAForCausalLM]]

MODELS: Dict[str, Classes] = {
    "gated_deltanet": (GatedDeltaNetConfig, GatedDeltaNetModel, GatedDeltaNetForCausalLM),
    "delta_net": (DeltaNetConfig, DeltaNetModel, DeltaNetForCausalLM),
    "gated_deltaproduct": (GatedDeltaProductConfig, GatedDeltaProductModel, GatedDeltaProductForCausalLM),
    "kda": (KDAConfig, KDAModel, KDAForCausalLM),
    "rwkv7": (RWKV7Config, RWKV7Model, RWKV7ForCausalLM),
}
"""By ``model_type``: config, model, language model."""


def load_config(folder: Union[str, Path], **overrides: Any) -> ModelConfig:
    """The config of a checkpoint folder.

    Args:
        folder: the folder with ``config.json``.
        overrides: fields of the config to change.

    Returns:
        The config, of the class for its ``model_type``.

    Raises:
        CheckpointError: the folder or ``config.json`` does not exist, or this library does not have the model.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> GatedDeltaNetConfig(num_hidden_layers=3).save_pretrained(folder)
        >>> load_config(folder).num_hidden_layers
        3
    """
    return _classes("load_config", folder)[0].from_pretrained(folder, **overrides)


def load_backbone(folder: Union[str, Path], **kwargs: Any) -> FLAModel:
    """Embedding, blocks and last norm of a checkpoint, without the output projection.

    Args:
        folder: the folder of a model or language model.
        kwargs: see `FLAPreTrainedModel.from_pretrained`: ``dtype``, ``device``, fields of the config.

    Returns:
        The model. It maps ids ``[B, T]`` or embeddings ``[B, T, hidden_size]`` to hidden states; its parts are
        ``embeddings``, ``layers`` (blocks with their norms and feed-forward layers) and ``norm``.

    Raises:
        CheckpointError: a file is missing, damaged or does not fit, or this library does not have the model.

    Example:
        >>> import tempfile, torch
        >>> from myfla.models import GatedDeltaNetConfig, GatedDeltaNetForCausalLM
        >>> config = GatedDeltaNetConfig(hidden_size=16, head_dim=8, num_heads=2, num_hidden_layers=1, vocab_size=9)
        >>> folder = tempfile.mkdtemp()
        >>> GatedDeltaNetForCausalLM(config).save_pretrained(folder)
        >>> load_backbone(folder)(inputs_embeds=torch.zeros(1, 3, 16)).last_hidden_state.shape
        torch.Size([1, 3, 16])
    """
    return _classes("load_backbone", folder)[1].from_pretrained(folder, **kwargs)


def load_model(folder: Union[str, Path], **kwargs: Any) -> FLAForCausalLM:
    """The language model of a checkpoint.

    Args:
        folder: the folder of a language model.
        kwargs: as for `load_backbone`.

    Returns:
        The model. It maps ids ``[B, T]`` to logits ``[B, T, vocab_size]``, and has ``generate``.

    Raises:
        CheckpointError: as for `load_backbone`.

    Example:
        >>> import tempfile, torch
        >>> config = RWKV7Config(hidden_size=16, head_dim=8, num_hidden_layers=1, vocab_size=9)
        >>> folder = tempfile.mkdtemp()
        >>> RWKV7ForCausalLM(config).save_pretrained(folder)
        >>> load_model(folder)(torch.tensor([[1, 2, 3]])).logits.shape
        torch.Size([1, 3, 9])
    """
    return _classes("load_model", folder)[2].from_pretrained(folder, **kwargs)


def _classes(who: str, folder: Union[str, Path]) -> Classes:
    path, fields = read_json(who, folder)
    kind = fields.get("model_type")
    if not isinstance(kind, str) or kind not in MODELS:
        hint = nearest(str(kind), MODELS) or "models of other architectures are not part of this library"
        raise CheckpointError(message(str(path), "model_type", f"must be one of {', '.join(MODELS)}", kind, hint))
    return MODELS[kind]
