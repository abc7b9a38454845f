"""An official checkpoint as the backbone of an encoder: its sizes, then its weights, in the encoder's blocks."""

import dataclasses
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator

import torch

from cfg.encoder import EncoderConfig
from cfg.validation import config_error
from encoders.contract import BlockBuilder
from encoders.stack import Encoder
from myfla.models import load_config
from myfla.models.checkpoint import WeightFiles, check_names, check_shape
from myfla.models.checkpoint_names import Source, adapt_names
from myfla.models.configuration import ModelConfig
from myfla.utils.errors import CheckpointError, message

__all__ = ["build_pretrained", "config_with_checkpoint"]

_TOP = {"input": "embeddings"}


def build_pretrained(strategy: BlockBuilder, config: EncoderConfig, device: Any = None,
                     dtype: Any = None) -> Encoder:
    """The encoder of a config whose ``pretrained`` names a checkpoint folder.

    Every block with its norms and MLP, and the last norm come from the checkpoint; for token ids also the embedding.
    The projection of real-valued input and the attention pooling are initialised anew. The result is an ordinary
    encoder: its config contains the sizes and no longer the folder.

    Args:
        strategy: of the checkpoint's architecture.
        config: of the strategy's class.
        device, dtype: for every parameter.

    Raises:
        ConfigError: another architecture, a direction that a language model does not have, or a field that the
            checkpoint contradicts.
        CheckpointError: a file of the checkpoint that is missing, damaged, pickled or unfit.
    """
    folder = config.pretrained
    sized = dataclasses.replace(config_with_checkpoint(strategy, config), pretrained=None)
    encoder = Encoder(sized, strategy, device=device, dtype=dtype)
    meta = any(parameter.is_meta for parameter in encoder.parameters())  # then only shapes are needed
    if folder is not None and not meta:
        with _naming_the_key():
            _fill(encoder, strategy, Path(folder))
    return encoder


def config_with_checkpoint(strategy: BlockBuilder, config: EncoderConfig) -> EncoderConfig:
    """The config with the sizes of the checkpoint that it names; unchanged if it names none.

    Raises:
        ConfigError, CheckpointError: as `build_pretrained`.
    """
    if config.pretrained is None:
        return config
    if strategy.model_type is None:
        raise config_error("encoder.pretrained", f"must be null for encoder {config.name!r}", config.pretrained,
                           "there are no official checkpoints of it")
    if config.direction != "causal":
        raise config_error("encoder.direction", "must be causal with encoder.pretrained", config.direction,
                           "a language model reads forwards; set encoder.direction=causal")
    with _naming_the_key():
        found = load_config(config.pretrained)
    file = str(Path(config.pretrained) / "config.json")
    if found.model_type != strategy.model_type:
        raise config_error("encoder.pretrained", f"must be a checkpoint of a {strategy.model_type!r} model",
                           f"{file} with model_type {found.model_type!r}", f"use encoder={found.model_type}")
    with _naming_the_key():
        fields = {**_shared_fields(found), **strategy.fields_of_checkpoint(found, file)}
    config = _with_vocabulary(config, found, file)
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for name, value in fields.items():
        mine = getattr(config, name)
        if mine not in (defaults[name], value):
            raise config_error(f"encoder.{name}", f"must be {value!r}, as {file} says, or left out", mine,
                               "the sizes are the checkpoint's")
    return dataclasses.replace(config, **fields)


@contextmanager
def _naming_the_key() -> Iterator[None]:
    """Add to errors of the checkpoint's files the setting that names it."""
    try:
        yield
    except CheckpointError as problem:
        raise CheckpointError(f"encoder.pretrained: {problem}") from None


def _with_vocabulary(config: EncoderConfig, found: ModelConfig, file: str) -> EncoderConfig:
    """Without real-valued input the encoder reads the checkpoint's tokens; data may use some of them only."""
    if config.input_size is not None:
        return config
    if config.vocab_size is not None and config.vocab_size > found.vocab_size:
        rule = f"must be at most {found.vocab_size}, as {file} says"
        raise config_error("encoder.vocab_size", rule, config.vocab_size, "the tokens are those of another tokenizer")
    return dataclasses.replace(config, vocab_size=found.vocab_size)


def refuse_checkpoint(file: str, field: str, rule: str, got: Any) -> CheckpointError:
    """The error for a checkpoint that an encoder's blocks cannot hold."""
    hint = "load it with myfla.models.load_backbone, which has the official blocks"
    return CheckpointError(message(file, field, f"{rule} in an encoder's backbone", got, hint))


def _shared_fields(found: ModelConfig) -> Dict[str, Any]:
    return dict(hidden_size=found.hidden_size, num_layers=found.num_hidden_layers, norm_eps=found.norm_eps)


@torch.no_grad()
def _fill(encoder: Encoder, strategy: BlockBuilder, folder: Path) -> None:
    """Copy the tensors of the checkpoint into the new encoder."""
    files = WeightFiles(folder)
    sources = adapt_names(files.names, headless=True)
    tokens = encoder.config.vocab_size is not None
    parts = ("blocks.", "norm.", "input.") if tokens else ("blocks.", "norm.")
    own = {_official_name(name, strategy): p for name, p in encoder.named_parameters() if name.startswith(parts)}
    found = [name for name in sources if tokens or name != "embeddings.weight"]
    check_names(folder, own, found, f"the backbone of encoder {encoder.config.name!r}")
    for name, parameter in own.items():
        _copy(files, sources[name], parameter)


def _copy(files: WeightFiles, source: Source, parameter: torch.Tensor) -> None:
    tensor = files.read(source.name)
    tensor = tensor if source.change is None else source.change(tensor)
    check_shape(files.path(source.name), source.name, tensor.shape, parameter.shape)
    if not tensor.is_floating_point():
        hint = "quantised checkpoints are not read"
        raise CheckpointError(message(str(files.path(source.name)), source.name, "must be floating point", tensor.dtype,
                                      hint))
    parameter.copy_(tensor)


def _official_name(own: str, strategy: BlockBuilder) -> str:
    """``blocks.0.mixer.q_proj.weight`` is ``layers.0.attn.q_proj.weight`` there."""
    parts = own.split(".")
    back = {mine: theirs for theirs, mine in strategy.checkpoint_parts.items()}
    if parts[0] == "blocks":
        return ".".join(["layers", parts[1], back.get(parts[2], parts[2]), *parts[3:]])
    return ".".join([_TOP.get(parts[0], parts[0]), *parts[1:]])
