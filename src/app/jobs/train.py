"""``job=train``: train an encoder with a task, choose the epoch on validation data, report on test data."""

import dataclasses
import logging
import platform
from pathlib import Path
from typing import Any, Dict, Tuple

import lightning
import torch

from app.data import load_data
from app.data.module import SequenceDataModule
from app.data.sequences import SequenceData
from app.devices import check_devices
from app.reopening import begin, reopen
from app.report import show_results, write_results
from app.run_folder import in_sweep, is_first_process, overrides
from app.sizes import input_size
from app.tasks.predict import Evaluation, evaluate
from app.tasks.spec import TaskSpec, task_spec
from app.tasks.task import Values, build_task
from app.trained import save_task
from app.training.fit import Fit, fit, load_weights
from app.training.learner import Learner, class_weights
from app.training.quiet import quiet
from cfg.app import AppConfig
from cfg.validation import config_error
from encoders import build_encoder, with_checkpoint_sizes

__all__ = ["run"]

log = logging.getLogger(__name__)

_DEFAULT_THREADS = torch.get_num_threads()


def run(config: AppConfig, folder: Path) -> float:
    """Train, test, and write everything below ``folder``.

    Returns:
        the best validation loss.

    Raises:
        ConfigError, DataError, PluginError, UnknownEncoderError: before anything is trained.
    """
    quiet()
    given = overrides()
    if config.resume:
        folder = Path(config.run)
        config, given = reopen(folder)
    check_devices(config.trainer)
    torch.set_num_threads(config.trainer.threads or _DEFAULT_THREADS)
    torch.use_deterministic_algorithms(config.deterministic)
    data = load_data(config.data)
    task = task_spec(config.job.objective, data)
    config = dataclasses.replace(config, encoder=with_checkpoint_sizes(_sized(config, data, task)))
    module, parts = _prepare(config, data, task)
    if is_first_process():  # not before all has been built: what is refused leaves nothing
        begin(folder, config, data, given)
    first = fit(module, parts, config, folder)
    last = first
    if config.job.refit:
        module, parts, last = _refit(config, data, task, folder, first)
    if not is_first_process():
        return first.figures["val_loss"]
    if config.trainer.strategy == "fsdp":  # the trained one is in pieces
        module = _fresh(config, task, parts)
        load_weights(module, config, folder, "refit" if config.job.refit else "fit", sharded=False)
    module.to(_device(config))
    how = (config.job.test_pieces, config.job.test_carry)
    tests = {name: evaluate(module.encoder, module.task, parts.test_batches(name), *how) for name in parts.tests}
    results: Dict[str, Any] = {
        **{f"{name}_{key}": value for name, test in tests.items() for key, value in test.figures.items()},
        **first.figures,
        "epoch": first.epoch,
        "epochs": first.epochs,
        "fit_seconds": round(first.seconds + (last.seconds if last is not first else 0.0), 3),
        "train_tokens_per_s": round(last.tokens_per_s, 1),
        **_speed(tests["test"]),
        "objective": task.objective,
        "encoder": config.encoder.name,
        "encoder_parameters": sum(p.numel() for p in module.encoder.parameters()),
        "data": config.data.name,
        "train_sequences": len(parts.train),
        "validation_sequences": len(data.train) - len(parts.train),
        "test_sequences": len(parts.tests["test"]),
        "seed": config.seed,
        "refit": config.job.refit,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "overrides": given,
        "inputs": parts.pipeline.facts(),
    }
    module.encoder.save(folder, parts.pipeline)
    save_task(folder, module.task)
    ids = parts.prepared(parts.tests["test"]).identity
    write_results(folder, results, module.encoder, task, tests["test"], parts.test_batches(), ids, first)
    show_results(results, folder, brief=in_sweep())
    return first.figures["val_loss"]


def _device(config: AppConfig) -> str:
    return "cuda" if config.trainer.accelerator in ("gpu", "auto") and torch.cuda.is_available() else "cpu"


def _speed(test: Evaluation) -> Dict[str, float]:
    return {"encode_tokens_per_s": round(test.tokens_per_s, 1),
            "encode_sequences_per_s": round(test.sequences_per_s, 1)}


def _sized(config: AppConfig, data: SequenceData, task: TaskSpec) -> Any:
    """The encoder's config with the number of channels, or of token ids, of the data."""
    encoder, source = config.encoder, f"data={config.data.name}"
    if task.shifts and (encoder.direction != "causal" or encoder.state_weaving):
        key = "direction" if encoder.direction != "causal" else "state_weaving"
        wanted = "causal" if key == "direction" else "false"
        raise config_error(f"encoder.{key}", f"must be {wanted} with job.objective=next_step", getattr(encoder, key),
                           "an encoder that has seen the next step need not predict it")
    if task.shifts and config.data.own_scale:
        raise config_error("data.own_scale", "must be false with job.objective=next_step", True,
                           "the scale of a whole sequence tells of the steps that are to be predicted")
    if task.per_step and config.job.crop:
        raise config_error("job.crop", "must be 0 where each step has a target", config.job.crop)
    pieces = config.job.test_pieces
    if pieces and (encoder.direction != "causal" or encoder.state_weaving or encoder.stem != "none"):
        raise config_error("job.test_pieces", "must be null with an encoder that cannot be fed in pieces", pieces,
                           "use encoder.direction=causal, without encoder.state_weaving and encoder.stem")
    if pieces and config.data.packed:
        raise config_error("job.test_pieces", "must be null with data.packed=true", pieces)
    if task.per_step and encoder.stem != "none":
        raise config_error("encoder.stem", "must be none where each step has a target", encoder.stem,
                           "a stem makes one step of several")
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


def _prepare(config: AppConfig, data: SequenceData, task: TaskSpec) -> Tuple[Learner, SequenceDataModule]:
    parts = SequenceDataModule(data, config.data, config.seed, task=task)
    module = _fresh(config, task, parts)
    log.info("%s", parts.pipeline.describe())
    log.info("%s: %d parameters; %d sequences to train on, %d to validate, %d to test", config.encoder.name,
             sum(p.numel() for p in module.parameters()), len(parts.train), len(parts.validation),
             sum(map(len, parts.tests.values())))
    return module, parts


def _refit(config: AppConfig, data: SequenceData, task: TaskSpec, folder: Path,
           first: Fit) -> Tuple[Learner, SequenceDataModule, Fit]:
    """Train afresh on all training data, with a schedule as long as the number of epochs that validation chose."""
    config = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, max_epochs=first.epoch))
    parts = SequenceDataModule(data, config.data, config.seed, validate=False, task=task)
    module = _fresh(config, task, parts)
    return module, parts, fit(module, parts, config, folder, "refit", earlier=first.rows)


def _fresh(config: AppConfig, spec: TaskSpec, parts: SequenceDataModule) -> Learner:
    lightning.seed_everything(config.seed, workers=True)
    encoder = build_encoder(config.encoder)
    task, targets, weight = build_task(spec, encoder.config.hidden_size), parts.train.targets, None
    if isinstance(task, Values) and not spec.shifts:
        task.measure(targets if isinstance(targets, torch.Tensor) else torch.cat(list(targets)))
    if config.job.class_weights == "balanced" and not spec.shifts:
        weight = class_weights(targets, spec.outputs)
    return Learner(encoder, task, config.job, weight)
