"""The encoder's config, completed by what the data say."""

import dataclasses

from app.data import load_data
from cfg.app import AppConfig
from cfg.encoder import EncoderConfig

__all__ = ["sized_encoder"]


def sized_encoder(config: AppConfig) -> EncoderConfig:
    """The encoder's config as it is if it says what it reads, else with the number of channels, or of token ids,
    of the data.

    Raises:
        DataError: the data have to be read for that and cannot be.
    """
    encoder = config.encoder
    if encoder.input_size is not None or encoder.vocab_size is not None:
        return encoder
    data = load_data(config.data)
    return dataclasses.replace(encoder, input_size=data.input_size, vocab_size=data.vocab_size)
