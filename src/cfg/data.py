"""Data configs: where sequences come from and how they are batched."""

from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Type

from cfg.validation import Fields

__all__ = ["DATA_CONFIGS", "DataConfig", "TsDataConfig"]

SYNTHETIC = ("parity", "counting", "s3", "recall", "memory")
MISSING = ("error", "mean", "forward")
LAYOUTS, IDS = ("long", "lists", "wide"), ("per_file", "global")
MARKS = {"comma": ",", "semicolon": ";", "tab": "\t", "space": " ", "pipe": "|", "point": ".", "apostrophe": "'"}


@dataclass
class DataConfig:
    """What every data source has.

    Args:
        name: the source, as `app.data.SOURCES` knows it.
        batch_size: sequences in a batch, all processes together.
        batch_tokens: most tokens in a batch, instead of ``batch_size``: sequences of like length come together, and
            pads count; null for none.
        packed: lay the sequences of a batch one after the other (``cu_seqlens``) and not side by side with pads; the
            loss is the same.
        validation_fraction: share of each class of the training set that is held out to choose the epoch on.
        test_fraction: share that is held out to report on, where the source has no test set.
        standardize: scale every channel to mean 0 and standard deviation 1, measured on training data only.
        missing: what becomes of a missing value (NaN): ``error``, ``mean`` (of its channel, in training) or
            ``forward`` (the value before it, else the first after it).
        own_scale: first bring each sequence to mean 0 and standard deviation 1, channel by channel, and add a channel
            with log10 of that deviation for each; for data whose scale spans orders of magnitude. Needs whole
            sequences: no streams, no ``next_step``.

    Raises:
        ConfigError: a field breaks its rule; the message starts with ``data.<field>``.
    """

    name: str = "???"
    batch_size: int = 16
    batch_tokens: Optional[int] = None
    packed: bool = False
    validation_fraction: float = 0.2
    test_fraction: float = 0.2
    standardize: bool = True
    missing: str = "error"
    own_scale: bool = False

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Check every field. A subclass calls ``super().validate()`` and then checks its own."""
        fields = Fields(self, "data")
        fields.text("name")
        fields.integer("batch_size", 1, 1 << 20)
        fields.integer("batch_tokens", 1, 1 << 30, optional=True)
        fields.flag("packed")
        fields.number("validation_fraction", 0, 1, open_low=True, open_high=True)
        fields.number("test_fraction", 0, 1, open_low=True, open_high=True)
        fields.flag("standardize")
        fields.choice("missing", MISSING)
        fields.flag("own_scale")


@dataclass
class JapaneseVowelsDataConfig(DataConfig):
    """The Japanese Vowels data set that ships with the application."""

    name: str = "japanese_vowels"


@dataclass
class TsDataConfig(DataConfig):
    """One's own data in the `.ts` format of the UEA/UCR archive: classification or regression.

    Args:
        train_path, test_path: the files; relative paths start from the folder the command runs in. Without a test file,
            ``test_fraction`` of the sequences are held out.
    """

    name: str = "ts"
    train_path: str = "???"
    test_path: Optional[str] = None

    def validate(self) -> None:
        super().validate()
        fields = Fields(self, "data")
        fields.text("train_path")
        fields.text("test_path", optional=True)


@dataclass
class SyntheticDataConfig(DataConfig):
    """A task made up by rule, to see what a layer can learn.

    - ``parity``: of the ones so far, at every step
    - ``counting``: the ones so far, modulo ``modulus``, at every step
    - ``s3``: the product of the permutations of three things so far, at every step
    - ``recall``: ``pairs`` of keys and values, then noise in which each key comes once more: name its value
      (multi-query associative recall, Zoology)
    - ``memory``: a symbol to be kept over noise and named at every read (flip-flop); in the training set symbols come
      often in some sequences and hardly ever in others, in the test sets one at the start, and the read at the end

    Args:
        task: which of them.
        train_length: steps of the training (and validation) sequences.
        test_lengths: steps of the test sets; figures of the first are ``test_...``, of the others
            ``test_<length>_...``.
        train_sequences, test_sequences: how many, the latter for each length.
        modulus: of ``counting``.
        pairs: of ``recall``.
        symbols: of ``memory``; of ``recall`` keys and values together.
        data_seed: fixes the sequences; the run's ``seed`` does not change them.
    """

    name: str = "synthetic"
    task: str = "parity"
    train_length: int = 32
    test_lengths: List[int] = field(default_factory=lambda: [32, 64])
    train_sequences: int = 6400
    test_sequences: int = 256
    modulus: int = 3
    pairs: int = 8
    symbols: int = 64
    data_seed: int = 0

    def validate(self) -> None:
        super().validate()
        fields = Fields(self, "data")
        fields.choice("task", SYNTHETIC)
        for name in ("train_length", "train_sequences", "test_sequences"):
            fields.integer(name, 2, 1 << 30)
        fields.integer("modulus", 2, 1 << 10)
        fields.integer("pairs", 1, 1 << 16)
        fields.integer("symbols", 2, 1 << 20)
        fields.integer("data_seed", 0, (1 << 31) - 1)
        lengths = self.test_lengths
        if not isinstance(lengths, list) or not lengths or not all(type(n) is int and n >= 2 for n in lengths):
            raise fields.error("test_lengths", "must be a list of integers from 2", lengths)
        if len(set(lengths)) < len(lengths):
            raise fields.error("test_lengths", "must be different lengths", lengths)
        if self.task == "recall":
            if self.symbols < 4 * self.pairs:
                raise fields.error("symbols", f"must be at least {4 * self.pairs}, four for each of {self.pairs} pairs",
                                   self.symbols)
            shortest = min([self.train_length, *lengths])
            if shortest < 3 * self.pairs:
                raise fields.error("pairs", f"must be at most {shortest // 3} in {shortest} steps: a key, its "
                                   "value and the key once more", self.pairs)


@dataclass
class TableDataConfig(DataConfig):
    """One's own CSV or Parquet tables; see ``docs/own_data.md``.

    Args:
        train_path, test_path: a file, or a folder of files; without a test file, ``test_fraction`` is held out.
        layout: ``long`` (a row a step), ``lists`` (a row a sequence, of lists) or ``wide`` (a row a sequence, a column
            a step); null: ``long`` with ``sequence`` or ``window``, else ``lists``.
        sequence: column that says which sequence a row belongs to; null: each file is one (``long``), or each row.
        time: column that orders the rows of a sequence; null: they are in order.
        features: columns to read; null: all of numbers that have no other part.
        label: column with a class.
        targets: columns with numbers to predict.
        per_step: labels or targets are one a step, not one a sequence.
        group: column; sequences of one group are never on both sides of a split.
        ids: ``per_file``: the same id in two files is two sequences; ``global``: it is one; null: refused without
            ``time``, else one whose parts must not overlap.
        window, stride: cut sequences into windows of so many steps, one beginning every ``stride`` steps (null: one
            behind the other).
        separator: between the cells of a CSV file: comma, semicolon, tab, space, pipe, or the character; null: found.
        decimal: before the fraction: ``point`` or ``comma``; null: found.
        thousands: between groups of three digits: comma, point, space, apostrophe, or the character; null: none.
        encoding: of CSV files, as Python names it; null: found.
        header: whether the first line names the columns; null: it must, and a row of numbers is refused.
        na_values: texts that stand for an empty cell; by default nothing but an empty cell is missing.
        scratch: folder for the working copy of large tables; null: the system's folder for temporary files.
    """

    name: str = "table"
    train_path: str = "???"
    test_path: Optional[str] = None
    layout: Optional[str] = None
    sequence: Optional[str] = None
    time: Optional[str] = None
    features: Optional[List[str]] = None
    label: Optional[str] = None
    targets: Optional[List[str]] = None
    per_step: bool = False
    group: Optional[str] = None
    ids: Optional[str] = None
    window: Optional[int] = None
    stride: Optional[int] = None
    separator: Optional[str] = None
    decimal: Optional[str] = None
    thousands: Optional[str] = None
    encoding: Optional[str] = None
    header: Optional[bool] = None
    na_values: List[str] = field(default_factory=list)
    scratch: Optional[str] = None

    def validate(self) -> None:
        super().validate()
        fields = Fields(self, "data")
        fields.text("train_path")
        for name in ("test_path", "sequence", "time", "label", "group", "encoding", "scratch"):
            fields.text(name, optional=True)
        for name in ("features", "targets"):
            _names(fields, name, getattr(self, name))
        fields.flag("per_step")
        for name, known in (("layout", LAYOUTS), ("ids", IDS), ("decimal", ("point", "comma"))):
            if getattr(self, name) is not None:
                fields.choice(name, known)
        for name in ("window", "stride"):
            fields.integer(name, 1, 1 << 24, optional=True)
        for name in ("separator", "thousands"):
            value = getattr(self, name)
            if value is not None and value not in MARKS and not (isinstance(value, str) and len(value) == 1
                                                                  and value not in '"\r\n'):
                raise fields.error(name, f"must be one of {', '.join(MARKS)}, one character, or null", value)
        if self.header is not None:
            fields.flag("header")
        if not isinstance(self.na_values, list) or not all(isinstance(n, str) for n in self.na_values):
            raise fields.error("na_values", "must be a list of texts", self.na_values, "e.g. ['?','-']")
        self._check_together(fields)

    def _check_together(self, fields: Fields) -> None:
        if self.label is not None and self.targets is not None:
            raise fields.error("targets", f"must be null with data.label={self.label}", self.targets)
        if self.stride is not None and self.window is None:
            raise fields.error("stride", "must be null without data.window", self.stride)
        rows = self.arranged != "long"
        if self.time is not None and rows:
            raise fields.error("time", "must be null without data.sequence", self.time, "lists are in order; a table "
                               "of a row a step needs data.sequence, data.window or data.layout=long")
        if self.window is not None and rows:
            raise fields.error("window", f"must be null with data.layout={self.layout}", self.window)
        if self.arranged == "wide" and self.per_step:
            raise fields.error("per_step", "must be false with data.layout=wide", True)
        if self.thousands_mark and self.thousands_mark == self.decimal_mark:
            raise fields.error("thousands", "must differ from data.decimal", self.thousands)
        parts = [self.sequence, self.time, self.label, self.group, *(self.features or []), *(self.targets or [])]
        twice = [name for name in parts if name is not None and parts.count(name) > 1]
        if twice:
            raise fields.error("features", "and the other columns must be different", twice[0])

    @property
    def arranged(self) -> str:
        """The layout, where it is not given by what else is."""
        return self.layout or ("long" if self.sequence is not None or self.window is not None else "lists")

    @property
    def separator_mark(self) -> Optional[str]:
        """The character; None where it is to be found."""
        return MARKS.get(self.separator or "", self.separator)

    @property
    def decimal_mark(self) -> Optional[str]:
        """The character; None where it is to be found."""
        return None if self.decimal is None else MARKS[self.decimal]

    @property
    def thousands_mark(self) -> str:
        """The character; "" for none."""
        return MARKS.get(self.thousands or "", self.thousands or "")


def _names(fields: Fields, name: str, value: Any) -> None:
    if value is not None and not (isinstance(value, list) and value and all(isinstance(n, str) and n for n in value)):
        raise fields.error(name, "must be a list of columns or null", value)


@dataclass
class TextDataConfig(DataConfig):
    """Text, cut into windows; for ``job.objective=next_step``.

    Args:
        train_path, test_path: a file, or a folder with all its files that fit ``pattern``; without a test file,
            ``test_fraction`` is held out.
        pattern: of the names of files in a folder.
        tokenizer: a tokenizer file of Hugging Face (``tokenizer.json``); null: bytes.
        window: steps of a sequence.
        scratch: folder for the working copy of large texts; null: the system's folder for temporary files.
    """

    name: str = "text"
    train_path: str = "???"
    test_path: Optional[str] = None
    pattern: str = "*.txt"
    tokenizer: Optional[str] = None
    window: int = 256
    scratch: Optional[str] = None

    def validate(self) -> None:
        super().validate()
        fields = Fields(self, "data")
        fields.text("train_path")
        for name in ("test_path", "tokenizer", "scratch"):
            fields.text(name, optional=True)
        fields.text("pattern")
        fields.integer("window", 1, 1 << 24)


@dataclass
class ArraysDataConfig(DataConfig):
    """Arrays that were handed over in Python (`encoders.SequenceClassifier` and its kin); they are not kept."""

    name: str = "arrays"


DATA_CONFIGS: Dict[str, Type[DataConfig]] = {
    "japanese_vowels": JapaneseVowelsDataConfig, "ts": TsDataConfig, "synthetic": SyntheticDataConfig,
    "table": TableDataConfig, "text": TextDataConfig, "arrays": ArraysDataConfig}
