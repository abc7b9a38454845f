"""``job=train``: train an encoder with a task, choose the epoch on validation data, report on test data."""

import dataclasses
import logging
import platform
from pathlib import Path
from typing import Any, Dict

import torch

from app.baselines.measure import measure_baselines
from app.data import load_data
from app.data_summary import summarise
from app.devices import check_devices
from app.loss_note import loss_note
from app.reopening import begin, reopen
from app.report import say_baselines, show_results, write_results
from app.run_folder import in_sweep, is_first_process, overrides
from cfg.app import AppConfig
from cfg.job import TrainJobConfig
from encoders import with_checkpoint_sizes
from encoders.training.loop.fit import Fit
from encoders.training.loop.quiet import quiet
from encoders.training.run import prepare, train, whole
from encoders.training.settle import settle
from encoders.training.sizes import encoder_for
from encoders.training.tasks.predict import Evaluation, evaluate
from encoders.training.tasks.spec import task_spec
from encoders.training.trained import save_task

__all__ = ["run"]

log = logging.getLogger(__name__)

_DEFAULT_THREADS = torch.get_num_threads()


def run(config: AppConfig, folder: Path) -> float:
    """Train, test, and write everything below ``folder``.

    Returns:
        the best validation loss; the last training loss if nothing is held out.

    Raises:
        ConfigError, DataError, PluginError, UnknownEncoderError: before anything is trained.
    """
    quiet()
    given = overrides()
    if config.resume:
        folder = Path(config.run or "")
        config, given = reopen(folder)
    check_devices(config.trainer)
    torch.set_num_threads(config.trainer.threads or _DEFAULT_THREADS)
    torch.use_deterministic_algorithms(config.deterministic)
    data = load_data(config.data)
    task = task_spec(config.job_as(TrainJobConfig).objective, data)
    config, _ = settle(config, data, task)
    job = config.job_as(TrainJobConfig)
    config = dataclasses.replace(config, encoder=with_checkpoint_sizes(encoder_for(config, data, task)))
    module, parts = prepare(config, data, task)
    split = {"training": parts.train, "validation": parts.validation, **parts.tests}
    if is_first_process():  # only after everything is built: a start that is refused leaves no files
        begin(folder, config, data, given)
    outcome = train(module, parts, data, config, folder)
    parts, first, last = outcome.parts, outcome.first, outcome.last
    if not is_first_process():
        return _aim(first)
    module = whole(outcome, config, folder)
    module.to(_device(config))
    how = (job.test_pieces, job.test_carry)
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
        "refit": last is not first,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "overrides": given,
        "inputs": parts.pipeline.facts(),
    }
    results["data_summary"] = summarise(split, task)
    if job.baselines:
        results["baselines"] = measure_baselines(parts.prepared(parts.train), parts.prepared(parts.tests["test"]), task,
                                                 data.vocab_size)
    module.encoder.save(folder, parts.pipeline)
    save_task(folder, module.task)
    ids = parts.prepared(parts.tests["test"]).identity
    write_results(folder, results, module.encoder, task, tests["test"], parts.test_batches(), ids, first,
                  loss_note(config, first.figures))
    say_baselines(results, task.kind)
    show_results(results, folder, brief=in_sweep())
    return _aim(first)


def _aim(fit: Fit) -> float:
    """The loss that a search minimises: on validation data, or on training data if nothing was held out."""
    return fit.figures.get("val_loss", fit.figures["train_loss"])


def _device(config: AppConfig) -> str:
    return "cuda" if config.trainer.accelerator in ("gpu", "auto") and torch.cuda.is_available() else "cpu"


def _speed(test: Evaluation) -> Dict[str, float]:
    return {"encode_tokens_per_s": round(test.tokens_per_s, 1),
            "encode_sequences_per_s": round(test.sequences_per_s, 1)}
