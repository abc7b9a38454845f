"""The outputs of a trained task as classes, or as values in the units of the data."""

from typing import List, NamedTuple, Optional, Tuple

from torch import Tensor

from encoders.pipeline import InputPipeline
from encoders.training.tasks.task import Task

__all__ = ["Answers", "answer", "answer_names"]


class Answers(NamedTuple):
    """For each sequence, or each step, in the layout of the task's outputs.

    Attributes:
        predicted: ``[...]`` int64, the class; None for values.
        probabilities: ``[..., outputs]`` of all classes; None for values.
        values: ``[..., outputs]`` float64, in the data's units; None for classes.
    """

    predicted: Optional[Tensor] = None
    probabilities: Optional[Tensor] = None
    values: Optional[Tensor] = None

    def of_classes(self) -> Tuple[Tensor, Tensor]:
        """``(predicted, probabilities)``.

        Raises:
            ValueError: these are values.
        """
        if self.predicted is None or self.probabilities is None:
            raise ValueError("answers must be classes with probabilities; got values")
        return self.predicted, self.probabilities


def answer(task: Task, pipeline: InputPipeline, outputs: Tensor) -> Answers:
    """Outputs of a task as classes or values.

    Args:
        task: with weights.
        pipeline: of the same run; the next features are predicted on its scale.
        outputs: what ``task(...)`` gave.
    """
    if task.spec.kind == "classes":
        probabilities = outputs.float().softmax(-1)
        return Answers(probabilities.argmax(-1), probabilities)
    values = task.predict(outputs)["value"].double()
    return Answers(values=pipeline.untransform(values) if task.spec.shifts else values)


def answer_names(task: Task, pipeline: InputPipeline) -> List[str]:
    """Names of the classes or values; token ids are their own names."""
    if task.spec.names is not None:
        return list(task.spec.names)
    if task.spec.kind == "values" and pipeline.schema is not None:
        return pipeline.schema.names
    return [str(i) for i in range(task.spec.outputs)]
