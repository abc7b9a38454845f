"""The config of an encoder, completed from the data and the task, or refused if they do not fit."""

import dataclasses
from typing import Optional

from cfg.app import AppConfig
from cfg.data import DataConfig
from cfg.encoder import EncoderConfig
from cfg.job import TrainJobConfig
from cfg.validation import config_error
from encoders.training.data.sequences import SequenceData
from encoders.training.tasks.spec import TaskSpec

__all__ = ["encoder_for", "input_size"]


def input_size(data: SequenceData, config: DataConfig) -> Optional[int]:
    """Channels that an encoder reads of these data; None for token ids."""
    if data.input_size is None:
        return None
    return data.input_size * (2 if config.own_scale else 1)  # with own_scale, each channel has a second one


def encoder_for(config: AppConfig, data: SequenceData, task: TaskSpec) -> EncoderConfig:
    """The encoder's config with the number of channels, or of token ids, of the data.

    Raises:
        ConfigError: a setting that does not fit the data or the task.
    """
    encoder, job, source = config.encoder, config.job_as(TrainJobConfig), f"data={config.data.name}"
    if task.shifts and (encoder.direction != "causal" or encoder.state_weaving):
        key = "direction" if encoder.direction != "causal" else "state_weaving"
        wanted = "causal" if key == "direction" else "false"
        raise config_error(f"encoder.{key}", f"must be {wanted} with job.objective=next_step", getattr(encoder, key),
                           "an encoder that has seen the next step need not predict it")
    if task.shifts and config.data.own_scale:
        raise config_error("data.own_scale", "must be false with job.objective=next_step", True,
                           "the scale of a whole sequence reveals the steps that are to be predicted")
    for name in ("crop", "warp", "mask"):
        if task.per_step and getattr(job, name):
            raise config_error(f"job.{name}", "must be 0 where each step has a target", getattr(job, name))
    pieces = job.test_pieces
    if pieces and encoder.needs_end is not None:
        raise config_error("job.test_pieces", "must be null with an encoder that cannot be fed in pieces", pieces,
                           "use encoder.direction=causal, without encoder.state_weaving, with encoder.stem=none or "
                           "inception")
    if pieces and config.data.packed:
        raise config_error("job.test_pieces", "must be null with data.packed=true", pieces)
    if task.per_step and encoder.stem not in ("none", "auto") and encoder.shortening > 1:
        raise config_error("encoder.stem", "must be none where each step has a target", encoder.stem,
                           "a stem makes one step of several; encoder.stem=inception encoder.stem_stride=1 does not")
    if data.vocab_size is not None:
        if encoder.input_size is not None:
            raise config_error("encoder.input_size", f"must be null for the tokens of {source}", encoder.input_size)
        if encoder.vocab_size not in (None, data.vocab_size):
            raise config_error("encoder.vocab_size", f"must be {data.vocab_size}, the token ids of {source}, or null",
                               encoder.vocab_size)
        return dataclasses.replace(encoder, vocab_size=data.vocab_size)
    if encoder.vocab_size is not None:
        raise config_error("encoder.vocab_size", f"must be null for data of {data.input_size} real-valued channels",
                           encoder.vocab_size)
    width = input_size(data, config.data)
    if encoder.input_size not in (None, width):
        raise config_error("encoder.input_size", f"must be {width}, the channels of {source}, "
                           "or null", encoder.input_size)
    return dataclasses.replace(encoder, input_size=width)
