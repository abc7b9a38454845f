"""The configs of the jobs that use a trained run on sequences: ``job=encode``, ``job=evaluate``, ``job=predict``."""

from dataclasses import dataclass, field
from typing import List, Optional

from cfg.job import JobConfig
from cfg.validation import Fields

__all__ = ["EncodeJobConfig", "EvaluateJobConfig", "PredictJobConfig"]

FORMATS = ("parquet", "safetensors")
UNITS = ("sequence", "step")
PARTS = ("test", "train")
PROBABILITIES = ("all", "predicted")
ENDINGS = (".csv", ".parquet", ".jsonl")


@dataclass
class EvaluateJobConfig(JobConfig):
    """Test a finished run (``run=FOLDER``) on its test set, on another file, or on other data (``data=...``).

    Args:
        input: file with sequences and targets, in the format of the run's data; null: the test set of the run's data,
            or of the ``data=`` that the command line names.
        ignore: columns of a table to skip; all others must be known to the run.

    Raises:
        ConfigError: a field breaks its rule; the message starts with ``job.<field>``.
    """

    name: str = "evaluate"
    input: Optional[str] = None
    ignore: List[str] = field(default_factory=list)

    def validate(self) -> None:
        super().validate()
        fields = Fields(self, "job")
        fields.text("input", optional=True)
        fields.names("ignore")


@dataclass
class PredictJobConfig(JobConfig):
    """Predict sequences with a finished run (``run=FOLDER``): classes with all their probabilities, or values,
    for each sequence or each step, as the run was trained. No targets are needed.

    Args:
        input: file with sequences, in the format of the run's data; null: ``part`` of the run's data, or of the
            ``data=`` that the command line names.
        part: which set of the run's data to use if there is no ``input``: ``test`` or ``train``.
        ignore: columns of a table to skip; all others must be known to the run.
        output: a new file, ``.csv``, ``.parquet`` or ``.jsonl``; null: ``predictions.csv`` in the folder of this job.
        probabilities: whether to write the probabilities of ``all`` classes, or only of the ``predicted`` one.
        batch_tokens (tokens): largest number of tokens in a call of the encoder, padding included; a longer sequence is
            computed alone.

    Raises:
        ConfigError: a field breaks its rule; the message starts with ``job.<field>``.
    """

    name: str = "predict"
    input: Optional[str] = None
    part: str = "test"
    ignore: List[str] = field(default_factory=list)
    output: Optional[str] = None
    probabilities: str = "all"
    batch_tokens: int = 16384

    def validate(self) -> None:
        super().validate()
        fields = Fields(self, "job")
        fields.text("input", optional=True)
        fields.choice("part", PARTS)
        fields.names("ignore")
        fields.text("output", optional=True)
        if self.output is not None and not self.output.endswith(ENDINGS):
            raise fields.error("output", f"must end in {', '.join(ENDINGS)}", self.output)
        fields.choice("probabilities", PROBABILITIES)
        fields.integer("batch_tokens", 1, 1 << 40)


@dataclass
class EncodeJobConfig(JobConfig):
    """Turn sequences into embeddings with the encoder of a finished run (``run=FOLDER``).

    The output is a folder of parts, each of which appears when it is complete. Started again with the same
    settings, the job writes the parts that are missing. Several processes (torchrun, SLURM) share the parts.

    Args:
        input: file with sequences, in the format of the run's data, targets not needed; null: ``part`` of the run's
            data, or of the ``data=`` that the command line names.
        part: which set of the run's data to use if there is no ``input``: ``test`` or ``train``.
        ignore: columns of a table to skip; all others must be known to the run.
        output: folder for the output, which consists of several files (parts).
        format: format of the parts: ``parquet`` or ``safetensors``.
        per: whether to write one embedding for each ``sequence``, or one for each ``step``.
        part_sequences (sequences): sequences in each part.
        batch_tokens (tokens): largest number of tokens in a call of the encoder, padding included; a longer sequence is
            computed alone.

    Raises:
        ConfigError: a field breaks its rule; the message starts with ``job.<field>``.
    """

    name: str = "encode"
    input: Optional[str] = None
    part: str = "test"
    ignore: List[str] = field(default_factory=list)
    output: str = "???"
    format: str = "parquet"
    per: str = "sequence"
    part_sequences: int = 1024
    batch_tokens: int = 16384

    def validate(self) -> None:
        super().validate()
        fields = Fields(self, "job")
        fields.text("input", optional=True)
        fields.choice("part", PARTS)
        fields.names("ignore")
        fields.text("output")
        fields.choice("format", FORMATS)
        fields.choice("per", UNITS)
        fields.integer("part_sequences", 1, 1 << 30)
        fields.integer("batch_tokens", 1, 1 << 40)
