"""Folders of runs that were never trained: everything a job needs, made in no time."""

import dataclasses

import torch

from app.data import load_data
from app.sizes import input_size
from app_runs import compose_app
from encoders import build_encoder
from encoders.training.data.module import SequenceDataModule
from encoders.training.run_config import write_config
from encoders.training.tasks.spec import task_spec
from encoders.training.tasks.task import build_task
from encoders.training.trained import save_task

SMALL = ("encoder.hidden_size=16", "encoder.num_layers=1")


def untrained(folder, *overrides, seed=3):
    """Write a run's folder; returns it."""
    config = compose_app([*SMALL, *overrides])
    data = load_data(config.data)
    spec = task_spec(config.job.objective, data)
    sizes = {"input_size": input_size(data, config.data), "vocab_size": data.vocab_size}
    config = dataclasses.replace(config, encoder=dataclasses.replace(config.encoder, **sizes))
    torch.manual_seed(seed)
    encoder, task = build_encoder(config.encoder), build_task(spec, config.encoder.hidden_size)
    parts = SequenceDataModule(data, config.data, config.seed, task=spec)
    folder.mkdir(parents=True)
    encoder.save(folder, parts.pipeline)
    save_task(folder, task)
    write_config(config, folder / "config.yaml")
    return folder
