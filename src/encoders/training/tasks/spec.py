"""The description of a task in plain values, which is saved in the run's folder."""

from dataclasses import asdict, dataclass
from typing import Any, Dict, List, Mapping, Optional

from cfg.validation import config_error
from encoders.training.data.sequences import SequenceData

__all__ = ["TaskSpec", "task_spec"]


@dataclass(frozen=True)
class TaskSpec:
    """One objective on one kind of data.

    Attributes:
        objective: ``classify``, ``regress`` or ``next_step``.
        kind: of the targets: ``classes`` or ``values``.
        outputs: number of classes, or of values.
        per_step: an output for each step, from its hidden state; else one for each sequence, from its embedding.
        names: of the classes or values; None for token ids.
    """

    objective: str
    kind: str
    outputs: int
    per_step: bool
    names: Optional[List[str]] = None

    @property
    def shifts(self) -> bool:
        """The targets are the inputs, one step later; the data's own are not read."""
        return self.objective == "next_step"

    def name(self, index: int) -> str:
        """Of one output."""
        return str(index) if self.names is None else self.names[index]

    def facts(self) -> Dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> "TaskSpec":
        """The task of such `facts`. Raises TypeError if a field is missing or unknown."""
        return cls(**facts)


def task_spec(objective: str, data: SequenceData) -> TaskSpec:
    """The task of an objective on this data.

    Raises:
        ConfigError: the data have no such targets.
    """
    key = "job.objective"
    if objective == "next_step":
        if data.vocab_size is not None:
            return TaskSpec(objective, "classes", data.vocab_size, True)
        if data.input_size is None:
            raise config_error(key, "must not be next_step for data of neither channels nor token ids", objective)
        return TaskSpec(objective, "values", data.input_size, True)
    if objective == "classify":
        if data.classes is None:
            hint = "regress" if data.target_names else "next_step"
            table = "" if data.target_names or data.vocab_size else ", or name a table's column of classes: data.label"
            raise config_error(key, f"must be {hint} for data without classes", objective,
                               f"use job.objective={hint}{table}")
        return TaskSpec(objective, "classes", len(data.classes), data.per_step, list(data.classes))
    if data.target_names is None:
        hint = "classify" if data.classes else "next_step"
        raise config_error(key, f"must be {hint} for targets that are not numbers", objective,
                           f"use job.objective={hint}")
    return TaskSpec(objective, "values", len(data.target_names), data.per_step, list(data.target_names))
