"""Data configs: where sequences come from and how they are batched."""

from dataclasses import dataclass
from typing import Dict, Optional, Type

from cfg.validation import Fields

__all__ = ["DATA_CONFIGS", "DataConfig", "TsDataConfig"]

MISSING = ("error", "mean", "forward")


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


@dataclass
class JapaneseVowelsDataConfig(DataConfig):
    """The Japanese Vowels data set that ships with the application."""

    name: str = "japanese_vowels"


@dataclass
class TsDataConfig(DataConfig):
    """One's own classification data in the `.ts` format of the UEA/UCR archive.

    Args:
        train_path, test_path: the two files; relative paths start from the folder the command runs in.
    """

    name: str = "ts"
    train_path: str = "???"
    test_path: str = "???"

    def validate(self) -> None:
        super().validate()
        fields = Fields(self, "data")
        fields.text("train_path")
        fields.text("test_path")


DATA_CONFIGS: Dict[str, Type[DataConfig]] = {"japanese_vowels": JapaneseVowelsDataConfig, "ts": TsDataConfig}
