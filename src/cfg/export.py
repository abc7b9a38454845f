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
        format: ``onnx`` and ``torch_export`` write graphs: ``encoder`` (complete raw sequences to embedding and logits
            or values) and, for a causal encoder, ``step`` (one token, with the states as inputs and outputs).
            ``safetensors`` writes the weights.
        graphs: which graphs to write: ``all`` that the encoder can have, only ``whole`` (``encoder``), or only
            ``step``.
        length (tokens): length of the sequences of ``encoder``, whose sizes are then fixed. Null: any number of
            sequences of any length.
        context (tokens): for encoders with softmax attention without a window: how many earlier tokens ``step`` sees.
            Streams of up to this length equal PyTorch.
        batch (sequences): number of sequences in a graph of fixed size.
        steps (tokens): number of tokens that are streamed in the comparison with PyTorch.
        tolerance: largest difference from PyTorch, relative to the largest number compared (or absolute, if that number
            is below 1).

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
