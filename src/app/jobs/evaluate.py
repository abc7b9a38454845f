"""``job=evaluate``: evaluate a trained run on its own or another test set."""

import dataclasses
import platform
from pathlib import Path
from typing import Any, Dict, Iterable

import torch

from app.devices import find_device
from app.errors import RunError
from app.inputs import open_run_data, sets_to_judge, with_task
from app.report import show_results, write_results
from app.run_folder import in_sweep, overrides, refuse_overrides
from cfg.app import AppConfig
from cfg.encode import EvaluateJobConfig
from cfg.validation import config_error
from encoders.training.data.batches import Batch
from encoders.training.data.module import loader
from encoders.training.data.prepared import Prepared
from encoders.training.run_config import write_config
from encoders.training.tasks.predict import evaluate
from encoders.training.trained import load_trained

__all__ = ["run"]

_DEFAULT_THREADS = torch.get_num_threads()


def run(config: AppConfig, folder: Path) -> float:
    """Test the run and write the files that `app.report.write_results` lists.

    Returns:
        the loss on the (first) test set.

    Raises:
        ConfigError, DataError, RunError: there is no task, or the data do not fit.
    """
    job = config.job_as(EvaluateJobConfig)
    if config.run is None:
        raise config_error("run", "must be the folder of a finished run", None,
                           "python -m app job=evaluate run=outputs/app/...")
    refuse_overrides("evaluate", ("encoder",))
    torch.set_num_threads(config.trainer.threads or _DEFAULT_THREADS)
    torch.use_deterministic_algorithms(config.deterministic)
    trained = load_trained(config.run, find_device(config.trainer.accelerator))
    task, pipeline = with_task(trained, config.run, "be evaluated")
    spec = task.spec
    data, source = open_run_data(trained, config, job.input, targets=not spec.shifts, ignore=job.ignore)
    sets = sets_to_judge(spec, data, job.input or f"data={source.name}")
    parts = {name: Prepared(part, pipeline, spec.shifts) for name, part in sets}

    def batches(name: str) -> Iterable[Batch]:
        return loader(parts[name], source, spec.per_step)

    found = {name: evaluate(trained.encoder, task, batches(name)) for name in parts}
    first_name, first_set = sets[0]
    first = found[first_name]
    results: Dict[str, Any] = {
        **{f"{name}_{key}": value for name, one in found.items() for key, value in one.figures.items()},
        "encode_tokens_per_s": round(first.tokens_per_s, 1),
        "encode_sequences_per_s": round(first.sequences_per_s, 1),
        "job": "evaluate",
        "run": config.run,
        "objective": spec.objective,
        "encoder": trained.encoder.config.name,
        "encoder_parameters": sum(p.numel() for p in trained.encoder.parameters()),
        "data": Path(job.input).name if job.input is not None else source.name,
        "test_sequences": len(first_set),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "overrides": overrides(),
        "inputs": pipeline.facts(),
    }
    if "loss" not in first.figures:
        raise RunError(f"{job.input or f'data={source.name}'} must have targets to evaluate; got none in its test set")
    write_config(dataclasses.replace(config, encoder=trained.encoder.config, data=source), folder / "config.yaml")
    ids = parts[first_name].identity
    write_results(folder, results, trained.encoder, spec, first, batches(first_name), ids)
    show_results(results, folder, brief=in_sweep())
    return first.figures["loss"]
