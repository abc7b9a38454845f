"""``job=predict``: predictions of a trained run for sequences without targets, to CSV, Parquet or JSON lines."""

import logging
import time
from pathlib import Path

import torch

from app.devices import find_device
from app.encoding.progress import Progress
from app.errors import data_error
from app.inputs import open_run_data, with_task
from app.prediction_files import Part, open_predictions, require
from app.run_folder import refuse_overrides, relative
from app.tables import say
from cfg.app import AppConfig
from cfg.encode import PredictJobConfig
from cfg.validation import config_error
from encoders.training.data.prepared import Prepared
from encoders.training.tasks.answers import answer_names
from encoders.training.tasks.many import answer_many
from encoders.training.trained import load_trained

__all__ = ["run"]

log = logging.getLogger(__name__)
_DEFAULT_THREADS = torch.get_num_threads()


def run(config: AppConfig, folder: Path) -> float:
    """Write ``job.output``.

    Returns:
        seconds per sequence.

    Raises:
        ConfigError, DataError, InputError, RunError: before anything is written.
    """
    job = config.job_as(PredictJobConfig)
    if config.run is None:
        raise config_error("run", "must be the folder of a finished run", None,
                           "python -m app job=predict run=outputs/app/... job.input=NEW.csv")
    refuse_overrides("predict", ("encoder",))
    output = folder / "predictions.csv" if job.output is None else Path(job.output)
    require(output)
    torch.set_num_threads(config.trainer.threads or _DEFAULT_THREADS)
    torch.use_deterministic_algorithms(config.deterministic)
    trained = load_trained(config.run, find_device(config.trainer.accelerator))
    task, pipeline = with_task(trained, config.run, "predict with")
    data, source = open_run_data(trained, config, job.input, targets=False, ignore=job.ignore)
    chosen = data.train if job.input is not None or job.part == "train" else data.tests[0][1]
    sequences = Prepared(chosen, pipeline)
    for number, length in enumerate(sequences.lengths):
        if not length:
            who = job.input or f"data={source.name}"
            raise data_error(who, f"sequence {number + 1}", "must have at least one step", 0, "remove it")
    log.info("%s", pipeline.describe())
    start = time.perf_counter()
    names, all_classes = answer_names(task, pipeline), job.probabilities == "all"
    with Progress(len(sequences), config.trainer.progress) as progress, \
            open_predictions(output, names, all_classes) as write:
        for span, lengths, answers in answer_many(trained.encoder, task, pipeline, sequences, job.batch_tokens):
            write(Part(sequences.identity.part(span), lengths, answers, task.spec.per_step))
            progress.add(len(span), int(lengths.sum()))
    seconds = time.perf_counter() - start
    say(f"{len(sequences)} sequences in {seconds:.1f} s: {relative(output)}")
    return seconds / max(len(sequences), 1)
