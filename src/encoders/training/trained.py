"""Reads and writes the model in the folder of a finished run.

`encoder.save` writes ``encoder.safetensors`` and its manifest, which contains the input pipeline; ``task.safetensors``
has the head, with the task in JSON.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional, Union

from cfg.app import AppConfig
from encoders.errors import RunError
from encoders.io import TASK, read_encoder
from encoders.pipeline import InputPipeline
from encoders.stack import Encoder
from encoders.training.run_config import read_config
from encoders.training.tasks.spec import TaskSpec
from encoders.training.tasks.task import Task, build_task
from myfla.models.sealed_file import read_sealed, write_sealed
from myfla.utils.errors import CheckpointError, message
from myfla.utils.regular import read_regular

__all__ = ["TASK", "Trained", "estimator_facts", "load_trained", "save_task"]

KIND = "myfla.task"
VERSION = 2  # version 1 also had the scale of the input, and no names of columns


class Trained(NamedTuple):
    """A trained model.

    Attributes:
        folder: of its run.
        encoder: in evaluation mode; it reads prepared data.
        task: its head with weights; None in a folder that holds nothing but an encoder.
        pipeline: prepares raw data; None in a folder that holds nothing but an encoder.
    """

    folder: Path
    encoder: Encoder
    task: Optional[Task]
    pipeline: Optional[InputPipeline]

    @property
    def config(self) -> AppConfig:
        """The complete config of the run; see `encoders.training.run_config.read_config`."""
        return read_config(self.folder)

    @property
    def classes(self) -> Optional[list]:
        """Class names; None for values, token ids and without a task."""
        spec = None if self.task is None else self.task.spec
        return spec.names if spec is not None and spec.kind == "classes" else None


    @property
    def key(self) -> str:
        """A digest of weights, head and input pipeline: equal digests mean equal results."""
        digest = hashlib.sha256()
        for name in ("encoder.safetensors", TASK):
            path = self.folder / name
            digest.update(read_regular(path) if path.exists() else b"none")
        facts = None if self.pipeline is None else self.pipeline.facts()
        digest.update(json.dumps(facts, sort_keys=True).encode("utf-8"))
        return digest.hexdigest()[:32]


def save_task(folder: Path, task: Task, estimator: Optional[Dict[str, Any]] = None) -> None:
    """Write ``task.safetensors``: the task's tensors (``head.weight``, ``head.bias``, for values ``target_mean`` and
    ``target_std``), and in its header `TaskSpec` as JSON; with it what an estimator of Python wants to know again."""
    facts = {"version": VERSION, "task": task.spec.facts()}
    write_sealed(folder / TASK, KIND, task.tensors(), facts if estimator is None else {**facts, "estimator": estimator})


def estimator_facts(folder: Path) -> Dict[str, Any]:
    """What `save_task` was given as ``estimator``; empty for a run of the application."""
    facts = read_sealed(folder / TASK, KIND, CheckpointError)[1]
    return facts.get("estimator") or {}


def load_trained(run: Union[str, Path], device: Any = "cpu") -> Trained:
    """The model of a run, or of a folder with a saved encoder.

    Args:
        run: the folder.
        device: the device of the model.

    Raises:
        RunError: the folder or the device does not exist, or files are damaged or of another version.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise RunError(f"run must be the folder of a finished run; got {str(folder)!r}, which is not a folder")
    try:
        encoder, pipeline = read_encoder(folder, device=device)
        if not (folder / TASK).exists():
            return Trained(folder, encoder, None, pipeline)
        return Trained(folder, encoder, _load_task(folder / TASK, encoder, pipeline, device), pipeline)
    except (CheckpointError, RuntimeError) as problem:  # torch says with a RuntimeError that there is no such device
        raise RunError(f"run={str(folder)!r} must hold an intact encoder; {problem}") from None


def _load_task(path: Path, encoder: Encoder, pipeline: Optional[InputPipeline], device: Any) -> Task:
    tensors, facts = read_sealed(path, KIND, CheckpointError)
    if facts.get("version") != VERSION:
        raise CheckpointError(message(str(path), "version", f"must be {VERSION}", facts.get("version"),
                                      "it was written by another version of this package; use that one, or train "
                                      "again"))
    try:
        task = build_task(TaskSpec.from_facts(facts["task"]), encoder.config.hidden_size)
    except (KeyError, TypeError) as problem:
        raise CheckpointError(message(str(path), "task", "must be a task's description", str(problem))) from None
    shapes, found = ({k: list(v.shape) for k, v in sorted(held.items())} for held in (task.tensors(), tensors))
    if shapes != found:
        raise CheckpointError(message(str(path), "tensors", f"must be {shapes}", found, "it is another encoder's"))
    names = None if pipeline is None else pipeline.classes if task.spec.kind == "classes" else pipeline.targets
    if not task.spec.shifts and list(names or ()) != task.spec.names:
        raise CheckpointError(message(str(path), "names", f"must be those of the input pipeline, {list(names or ())}",
                                      task.spec.names, "it is another run's"))
    for name, value in task.state_dict(keep_vars=True).items():
        value.data = tensors[name]  # as saved, dtype included
    return task.to(device).eval()
