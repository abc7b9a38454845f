"""The encoder's config, completed by what the data say."""

import dataclasses
from pathlib import Path
from typing import Optional

from app.data import load_data
from app.data.sequences import SequenceData
from app.run_config import read_config
from app.run_folder import refuse_overrides
from cfg.app import AppConfig
from cfg.data import DataConfig
from cfg.encoder import EncoderConfig

__all__ = ["input_size", "sized_encoder"]


def sized_encoder(config: AppConfig) -> EncoderConfig:
    """The encoder's config: with ``run`` that of the run; as it is if it says what it reads; else with the number of
    channels, or of token ids, of the data.

    Raises:
        ConfigError: ``run`` and settings that come from it.
        DataError: the data have to be read for that and cannot be.
        RunError: ``run`` is none.
    """
    if config.run is not None:
        refuse_overrides(config.job.name, ("encoder", "data"))
        return read_config(Path(config.run)).encoder
    encoder = config.encoder
    if encoder.input_size is not None or encoder.vocab_size is not None:
        return encoder
    data = load_data(config.data)
    return dataclasses.replace(encoder, input_size=input_size(data, config.data), vocab_size=data.vocab_size)


def input_size(data: SequenceData, config: DataConfig) -> Optional[int]:
    """Channels that an encoder reads of these data; None for token ids."""
    if data.input_size is None:
        return None
    return data.input_size * (2 if config.own_scale else 1)  # with a scale of its own, a channel has a second one
