"""Sequences for a trained run: from its own data, from a file of the same format, or from other data that fit."""

import dataclasses
from pathlib import Path
from typing import Any, List, Optional, Sequence, Tuple

import torch

from app.data import load_data, read_source
from app.data.class_names import class_name
from app.data.tables import column_names
from app.errors import RunError, data_error
from app.run_folder import overrides
from cfg.app import AppConfig
from cfg.data import ArraysDataConfig, DataConfig, TableDataConfig, TsDataConfig
from cfg.validation import config_error
from encoders.pipeline import InputPipeline
from encoders.training.data.sequences import IGNORE, SequenceData, SequenceSet
from encoders.training.tasks.spec import TaskSpec
from encoders.training.tasks.task import Task
from encoders.training.trained import Trained

__all__ = ["open_run_data", "pipeline_of", "sets_to_judge", "with_task"]

_TARGETS = ("label", "targets", "group")


def with_task(trained: Trained, run: str, what: str) -> Tuple[Task, InputPipeline]:
    """Task and input pipeline of a run that was trained.

    Args:
        trained: the trained run.
        run: its folder as the user wrote it, for the message.
        what: the verb at the end of the message's "must hold a task to".

    Raises:
        RunError: the folder has only an encoder.
    """
    if trained.task is None or trained.pipeline is None:
        raise RunError(f"run={run!r} must hold a task (task.safetensors) to {what}; got an encoder by itself; use the "
                       "folder of a run of job=train")
    return trained.task, trained.pipeline


def pipeline_of(trained: Trained) -> InputPipeline:
    """The input pipeline of a run.

    Raises:
        RunError: there is only an encoder.
    """
    if trained.pipeline is None:
        raise RunError(f"run={str(trained.folder)!r} must hold what its training measured; got an encoder by itself; "
                       "use the folder of a run of job=train")
    return trained.pipeline


def open_run_data(
    trained: Trained, config: AppConfig, path: Optional[str], targets: bool, choose: Any = None,
    ignore: Sequence[str] = (),
) -> Tuple[SequenceData, DataConfig]:
    """The data of a job, after a check that they fit the encoder.

    Args:
        trained: the run.
        config: the config of this job; its ``data`` is used if the command line sets it.
        path: a file in the format of the run's data, all of which becomes ``train``; None for data sets.
        targets: whether targets are needed.
        choose: which sequences of the file are needed, as in `app.data.read_source`; without ``targets``.
        ignore: columns of a table to skip; all others must be known to the run.

    Raises:
        ConfigError, DataError, InputError, RunError: the data do not exist, or do not fit the encoder.
    """
    named = [override for override in overrides() if override.lstrip("+~").startswith(("data=", "data."))]
    if path is not None and named:
        raise config_error("job.input", "must not be set with other data", path, f"or leave out {named[0]}")
    own = trained.config.data
    if isinstance(own, ArraysDataConfig) and not named:
        own = _of_file(own, path, trained)
    chosen = _by_name(trained, config.data if named else own, path, ignore)
    data = load_data(chosen) if path is None else _load_file(chosen, path, targets, choose)
    _check_width(trained, data, path or f"data={chosen.name}")
    return data, chosen


def sets_to_judge(spec: TaskSpec, data: SequenceData, who: str) -> List[Tuple[str, SequenceSet]]:
    """The test sets, with the run's numbers of the classes.

    Raises:
        DataError: the targets are of another kind, or a class is unknown to the run.
    """
    sets = data.tests or [("test", data.train)]
    if spec.shifts:
        return sets
    names = data.classes if spec.kind == "classes" else data.target_names
    if names is None or data.per_step != spec.per_step or (spec.kind == "values" and len(names) != spec.outputs):
        steps = "step" if spec.per_step else "sequence"
        got = "none of this kind" if names is None else f"{len(names)} a {'step' if data.per_step else 'sequence'}"
        wanted = "a class" if spec.kind == "classes" else f"{spec.outputs} numbers"
        raise data_error(who, "targets", f"must be {wanted} for each {steps}, as in the run", got)
    if spec.kind == "values":
        return sets
    known = [class_name(name) for name in spec.names or ()]
    unknown = [name for name in names if name not in known]
    table = torch.tensor([known.index(name) if name in known else IGNORE - 1 for name in names])
    return [(name, _renumbered(part, table, unknown, known, who)) for name, part in sets]


def _of_file(own: ArraysDataConfig, path: Optional[str], trained: Trained) -> DataConfig:
    """How to read a file for a model that was trained on arrays: a `.ts` file by its name, otherwise tables, each of
    them one sequence."""
    if path is None:
        raise RunError(f"run={str(trained.folder)!r} was trained on arrays, which were handed over in Python and are "
                       "not kept; give job.input=FILE (.ts, or a table with one sequence a file), or other data with "
                       "data=...")
    shared = {field.name: getattr(own, field.name) for field in dataclasses.fields(DataConfig) if field.name != "name"}
    if Path(path).suffix == ".ts":
        return TsDataConfig(**shared, train_path=path)
    return TableDataConfig(**shared, train_path=path, layout="long")


def _load_file(chosen: DataConfig, path: str, targets: bool, choose: Any) -> SequenceData:
    fields = {field.name for field in dataclasses.fields(chosen)}
    if "train_path" not in fields:
        raise config_error("job.input", f"must be left out for a run on data={chosen.name}, which reads no files", path,
                           "name other data with data=...")
    changes: Any = {"train_path": path, "test_path": None}
    if not targets:
        changes.update({name: None for name in _TARGETS if name in fields})
    return read_source(dataclasses.replace(chosen, **changes), choose, targets)


def _by_name(trained: Trained, chosen: DataConfig, path: Optional[str], ignore: Sequence[str]) -> DataConfig:
    """The config with the run's columns, in the run's order, after a check that the table has them."""
    schema = None if trained.pipeline is None else trained.pipeline.schema
    if not isinstance(chosen, TableDataConfig) or schema is None or not (schema.named or schema.steps):
        return chosen
    features = schema.names
    for place in [chosen.train_path, chosen.test_path] if path is None else [path]:
        if place is not None:
            given = column_names(place, chosen)
            roles = [chosen.sequence, chosen.time, chosen.label, chosen.group, *(chosen.targets or ())]
            over = [*ignore, *(name for name in roles if name is not None)]
            if schema.steps:
                features = schema.match_steps(given, place, over, "job.ignore")
            else:
                schema.match(given, place, over, "job.ignore")
    return dataclasses.replace(chosen, features=features)


def _check_width(trained: Trained, data: SequenceData, who: str) -> None:
    pipeline = pipeline_of(trained)
    width = None if pipeline.schema is None else len(pipeline.schema.features)
    for name, want, got in (("number of channels", width, data.input_size),
                            ("number of token ids", pipeline.vocab_size, data.vocab_size)):
        if want != got:
            raise data_error(who, name, f"must be {want}, as the encoder reads" if want else "must be none", got)


def _renumbered(part: SequenceSet, table: torch.Tensor, unknown: List[str], names: List[str], who: str) -> SequenceSet:
    def change(targets: torch.Tensor) -> torch.Tensor:
        found = torch.where(targets >= 0, table[targets.clamp(min=0)], targets)
        if bool((found == IGNORE - 1).any()):
            known = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
            raise data_error(who, "classes", f"must be among those of the run, {known}", ", ".join(unknown[:5]),
                             "leave these sequences out, or train with them")
        return found

    if isinstance(part.targets, torch.Tensor):
        return dataclasses.replace(part, targets=change(part.targets))
    return dataclasses.replace(part, targets=[change(targets) for targets in part.targets])
