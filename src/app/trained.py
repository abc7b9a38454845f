"""What a finished run's folder holds of the model, and the one way to get it back.

`encoder.save` writes ``encoder.safetensors`` and its manifest; beside them lies ``task.safetensors``: the head, and
what was measured on the training data, with the task in JSON.
"""

from pathlib import Path
from typing import Any, Dict, NamedTuple, Optional, Union

import torch
from torch import Tensor

from app.data.standardize import Standardizer
from app.errors import RunError
from app.run_config import read_config
from app.tasks.spec import TaskSpec
from app.tasks.task import Task, build_task
from cfg.app import AppConfig
from encoders import load_encoder
from encoders.stack import Encoder
from myfla.models.sealed_file import read_sealed, write_sealed
from myfla.utils.errors import CheckpointError, message

__all__ = ["TASK", "Trained", "load_trained", "save_task"]

TASK = "task.safetensors"
KIND = "myfla.task"
VERSION = 1


class Trained(NamedTuple):
    """A trained model.

    Attributes:
        folder: of its run.
        encoder: in evaluation mode.
        task: its head with weights; None in a folder that holds nothing but an encoder.
        standardizer: of its input features; None for token ids and without a task.
    """

    folder: Path
    encoder: Encoder
    task: Optional[Task]
    standardizer: Optional[Standardizer]

    @property
    def config(self) -> AppConfig:
        """The whole config of the run; see `app.run_config.read_config`."""
        return read_config(self.folder)

    @property
    def classes(self) -> Optional[list]:
        """Class names; None for values, token ids and without a task."""
        spec = None if self.task is None else self.task.spec
        return spec.names if spec is not None and spec.kind == "classes" else None


def save_task(folder: Path, task: Task, standardizer: Optional[Standardizer]) -> None:
    """Write ``task.safetensors``: the task's tensors (``head.weight``, ``head.bias``, for values ``target_mean`` and
    ``target_std``), ``mean`` and ``std`` of the input's channels, and in its header `TaskSpec` as JSON."""
    tensors, facts = task.tensors(), {"version": VERSION, "task": task.spec.facts(), "missing": None}
    if standardizer is not None:
        tensors.update(mean=standardizer.mean, std=standardizer.std)
        facts["missing"] = standardizer.missing
    write_sealed(folder / TASK, KIND, tensors, facts)


def load_trained(run: Union[str, Path], device: Any = "cpu") -> Trained:
    """The model of a run, or of a folder with a saved encoder.

    Args:
        run: the folder.
        device: where it shall be.

    Raises:
        RunError: no such folder, files that are damaged or of another version, or no such device.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise RunError(f"run must be the folder of a finished run; got {str(folder)!r}, which is no folder")
    try:
        encoder = load_encoder(folder, device=device)
        if not (folder / TASK).exists():
            return Trained(folder, encoder, None, None)
        return Trained(folder, encoder, *_load_task(folder / TASK, encoder, device))
    except (CheckpointError, RuntimeError) as problem:  # torch says with a RuntimeError that there is no such device
        raise RunError(f"run={str(folder)!r} must hold a whole encoder; {problem}") from None


def _load_task(path: Path, encoder: Encoder, device: Any) -> "tuple[Task, Optional[Standardizer]]":
    tensors, facts = read_sealed(path, KIND, CheckpointError)
    if facts.get("version") != VERSION:
        raise CheckpointError(message(str(path), "version", f"must be {VERSION}", facts.get("version"),
                                      "it was written by another version of this package; use that one, or train anew"))
    try:
        task = build_task(TaskSpec.from_facts(facts["task"]), encoder.config.hidden_size)
    except (KeyError, TypeError) as problem:
        raise CheckpointError(message(str(path), "task", "must be a task's description", str(problem))) from None
    wanted: Dict[str, Tensor] = task.tensors()
    width = encoder.config.input_size
    if width is not None:
        wanted.update(mean=torch.empty(width), std=torch.empty(width))
    shapes, found = ({k: list(v.shape) for k, v in sorted(held.items())} for held in (wanted, tensors))
    if shapes != found:
        raise CheckpointError(message(str(path), "tensors", f"must be {shapes}", found, "it is another encoder's"))
    standardizer = None
    if width is not None:
        mean, std = (tensors.pop(name).to(device) for name in ("mean", "std"))
        standardizer = Standardizer(mean, std, facts["missing"])
    for name, value in task.state_dict(keep_vars=True).items():
        value.data = tensors[name]  # as saved, dtype included
    return task.to(device).eval(), standardizer
