"""``job=encode``: embeddings of many sequences, by one process or several; it continues after an interruption."""

import logging
import time
from pathlib import Path
from typing import Any, Dict

import torch

from app.devices import find_device
from app.encoding.files import require, write_part
from app.encoding.plan import Place, Plan, file_facts, find_place
from app.encoding.progress import Progress
from app.inputs import open_run_data, pipeline_of
from app.run_folder import refuse_overrides, relative
from app.tables import say
from cfg.app import AppConfig
from cfg.encode import EncodeJobConfig
from cfg.validation import config_error
from encoders.training.data.prepared import Prepared
from encoders.training.encode import encode
from encoders.training.trained import Trained, load_trained

__all__ = ["run"]

log = logging.getLogger(__name__)
_DEFAULT_THREADS = torch.get_num_threads()


def run(config: AppConfig, folder: Path) -> float:
    """Make the parts of ``job.output`` that are missing.

    Returns:
        seconds per sequence of this start; 0 if no part was missing.

    Raises:
        ConfigError, DataError, RunError: before anything is written, except for a full disk.
    """
    job = config.job_as(EncodeJobConfig)
    if config.run is None:
        raise config_error("run", "must be the folder of a finished run", None,
                           "python -m app job=encode run=outputs/app/... job.output=EMBEDDINGS")
    refuse_overrides("encode", ("encoder",))
    require(job.format)
    torch.set_num_threads(config.trainer.threads or _DEFAULT_THREADS)
    place = find_place()
    trained = load_trained(config.run, _device(config.trainer.accelerator, place))
    facts = _facts(job, trained, config)

    def plan_for(source: str, count: int) -> Plan:
        return Plan(Path(job.output), {**facts, "data": source, "sequences": count})

    def choose(count: int) -> Any:
        plan = plan_for(trained.config.data.name, count)
        return plan.needed(plan.missing(place))

    data, source = open_run_data(trained, config, job.input, targets=False, choose=choose,
                                 ignore=job.ignore)
    chosen = data.train if job.input is not None or job.part == "train" else data.tests[0][1]
    sequences = Prepared(chosen, pipeline_of(trained))
    plan = plan_for(source.name, len(sequences))
    missing = plan.missing(place)
    plan.begin()
    todo = sum(len(plan.span(part)) for part in missing)
    log.info("%d sequences in %d part%s; %d sequences to do here%s", len(sequences), plan.count,
             "" if plan.count == 1 else "s", todo,
             f", process {place.rank} of {place.world}" if place.world > 1 else "")
    start = time.perf_counter()
    with Progress(todo, config.trainer.progress) as progress:
        for part in missing:
            made = encode(trained.encoder, sequences, plan.span(part), job.batch_tokens, job.per == "step")
            if chosen.names is not None:
                made = made._replace(names=[chosen.names[i] for i in plan.span(part)])
            write_part(plan.path(part), made, job.per == "step")
            progress.add(len(made.lengths), int(made.lengths.sum()))
    seconds = time.perf_counter() - start
    whole = plan.finish()
    say(f"{todo} sequences in {seconds:.1f} s; {relative(plan.folder)} is "
        + ("complete" if whole else "not complete yet: other processes are still writing parts"))
    return seconds / todo if todo else 0.0


def _facts(job: EncodeJobConfig, trained: Trained, config: AppConfig) -> Dict[str, Any]:
    """The facts that must be the same at every start."""
    given = {"part": job.part} if job.input is None else {"input": file_facts(Path(job.input))}
    return {"run": trained.key, **given, "per": job.per, "format": job.format,
            "part_sequences": job.part_sequences, "size": trained.encoder.config.hidden_size}


def _device(accelerator: str, place: Place) -> str:
    device = find_device(accelerator)
    if device == "cuda" and place.world > 1:
        return f"cuda:{place.rank % torch.cuda.device_count()}"
    return device
