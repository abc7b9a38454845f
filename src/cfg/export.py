"""The config of ``job=export``: a trained encoder for other runtimes."""

from dataclasses import dataclass
from typing import Optional

from cfg.job import JobConfig
from cfg.validation import Fields

__all__ = ["EXPORT_FORMATS", "ExportJobConfig"]

EXPORT_FORMATS = ("onnx", "torch_export", "safetensors")
GRAPHS = ("all", "whole", "step")


@dataclass
class ExportJobConfig(JobConfig):
    """Write the model of a finished run (``run=FOLDER``) as files that do not need this project.

    Every file is run again and compared with PyTorch before the job ends, and comes with a script that runs it.

    Args:
        format: ``onnx`` and ``torch_export`` write ``encoder``, whole raw sequences to embedding and logits or values,
            and for a causal encoder ``step``, one token with the states as inputs and outputs; ``safetensors`` writes
            the weights.
        graphs: ``all`` that the encoder can have, ``whole`` or ``step``.
        length (tokens): tokens of ``encoder``, whose sizes are fixed then. Null: any number of sequences of any length.
        context (tokens): how many tokens before its own a layer of softmax attention without a window sees at most in
            ``step``, whose states have a fixed size; within so many tokens it equals PyTorch. Needed for such encoders
            only.
        batch (sequences): sequences that a graph of fixed size takes at once.
        steps (tokens): how many tokens are streamed in the comparison.
        tolerance: largest difference, in units of the largest number compared (or of 1, where that is smaller).

    Raises:
        ConfigError: a field breaks its rule; the message starts with ``job.<field>``.
    """

    name: str = "export"
    format: str = "onnx"
    graphs: str = "all"
    length: Optional[int] = None
    context: Optional[int] = None
    batch: int = 1
    steps: int = 200
    tolerance: float = 1e-5

    def validate(self) -> None:
        super().validate()
        fields = Fields(self, "job")
        fields.choice("format", EXPORT_FORMATS)
        fields.choice("graphs", GRAPHS)
        fields.integer("length", 2, 1 << 20, optional=True)
        fields.integer("context", 1, 1 << 20, optional=True)
        fields.integer("batch", 1, 1 << 20)
        fields.integer("steps", 1, 1 << 20)
        fields.number("tolerance", 0, 1, open_low=True)
