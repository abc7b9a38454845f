"""The config of ``job=stream``: rows in, one output per row, state kept on disk."""

from dataclasses import dataclass, field
from typing import Any, List, Optional

from cfg.job import JobConfig
from cfg.validation import Fields

__all__ = ["EMITS", "FORMATS", "StreamJobConfig"]

FORMATS = ("auto", "jsonl", "csv")
EMITS = ("prediction", "embedding")


@dataclass
class StreamJobConfig(JobConfig):
    """Encode many concurrent sessions step by step with the causal encoder of a finished run (``run=FOLDER``).

    Args:
        input: file of rows; null reads standard input.
        format: format of the input: ``jsonl`` (one JSON object on each line), ``csv`` (a header line first), or
            ``auto``: by the file's name or, without one, by the first line.
        session: name of the field or column with the session.
        features: names of the fields or columns with the features, in the run's order; null: the fields or columns with
            the names of the run's features, in any order. Without names (a run on `.ts` files) all columns of a CSV
            file except the session's. In JSON the field ``features`` may be a list in the run's order, or an object
            with names.
        ignore: fields or columns to skip; all others must be known to the run.
        output: file for JSON lines; for a name that ends in ``.parquet``, a folder of Parquet files; null: JSON lines
            on standard output.
        emit: what to answer: ``prediction`` (class and probabilities, or values) or ``embedding``.
        state: folder for the states of the sessions; null: ``stream_state`` in the run's folder.
        first_row: for standard input after a restart: the number of the first row that is sent, or ``next`` if the
            sender continues with the first row that has no answer yet. Rows that have been answered are skipped.
        batch_rows (rows): largest number of rows in one step.
        memory_mb (MiB): memory for the states of sessions; beyond it, sessions that were idle longest are moved to
            disk.
        commit_seconds (seconds): time between two commits under load; without load, a commit follows at once.
        snapshot_seconds (seconds): time between two snapshots of the states; a restart repeats the rows since the last.
        threads (threads): number of threads of torch; null: torch's default.
        device: device on which the encoder runs, e.g. ``cpu`` or ``cuda``.

    Raises:
        ConfigError: a field breaks its rule; the message starts with ``job.<field>``.
    """

    name: str = "stream"
    input: Optional[str] = None
    format: str = "auto"
    session: str = "session"
    features: Optional[List[str]] = None
    ignore: List[str] = field(default_factory=list)
    output: Optional[str] = None
    emit: str = "prediction"
    state: Optional[str] = None
    first_row: Any = 1
    batch_rows: int = 4096
    memory_mb: float = 1024.0
    commit_seconds: float = 0.1
    snapshot_seconds: float = 30.0
    threads: Optional[int] = 1
    device: str = "cpu"

    def validate(self) -> None:
        super().validate()
        fields = Fields(self, "job")
        for name in ("input", "output", "state"):
            fields.text(name, optional=True)
        fields.text("session")
        fields.text("device")
        fields.choice("format", FORMATS)
        fields.choice("emit", EMITS)
        self._check_features(fields)
        fields.names("ignore")
        self._check_first_row(fields)
        fields.integer("batch_rows", 1, 1 << 20)
        fields.number("memory_mb", 0, 1e9, open_low=True)
        fields.number("commit_seconds", 0, 3600)
        fields.number("snapshot_seconds", 0, 1e6)
        fields.integer("threads", 1, 1 << 10, optional=True)

    def _check_features(self, fields: Fields) -> None:
        rule, names = fields.rule("features", "a list of names or null"), self.features
        if names is None:
            return
        if not isinstance(names, list) or not names or not all(isinstance(n, str) and n for n in names):
            raise fields.error("features", rule, names)
        if len(set(names)) < len(names) or self.session in names:
            raise fields.error("features", f"must be different names, none of them job.session={self.session}", names)

    def _check_first_row(self, fields: Fields) -> None:
        rule = fields.rule("first_row", "an integer from 1, or next")
        if self.first_row == "next":
            return
        if isinstance(self.first_row, bool) or not isinstance(self.first_row, int) or self.first_row < 1:
            raise fields.error("first_row", rule, self.first_row)
        if self.first_row != 1 and self.input is not None:
            raise fields.error("first_row", "must be left out with job.input", self.first_row,
                               "a file is continued where it was left")
