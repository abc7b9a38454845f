"""The encoder's config, completed from the data."""

import dataclasses
from pathlib import Path

from app.data import load_data
from app.run_folder import refuse_overrides
from cfg.app import AppConfig
from cfg.encoder import EncoderConfig
from encoders.training.run_config import read_config
from encoders.training.sizes import input_size

__all__ = ["sized_encoder"]


def sized_encoder(config: AppConfig) -> EncoderConfig:
    """The config of the encoder: with ``run``, the config of the run; otherwise, if its input size is not set, with the
    number of channels or token ids of the data.

    Raises:
        ConfigError: ``run`` together with settings that come from it.
        DataError: the data must be read and cannot be.
        RunError: ``run`` is not a run.
    """
    if config.run is not None:
        refuse_overrides(config.job.name, ("encoder", "data"))
        return read_config(Path(config.run)).encoder
    encoder = config.encoder
    if encoder.input_size is not None or encoder.vocab_size is not None:
        return encoder
    data = load_data(config.data)
    return dataclasses.replace(encoder, input_size=input_size(data, config.data), vocab_size=data.vocab_size)
