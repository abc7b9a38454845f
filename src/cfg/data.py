"""Data configs: where sequences come from and how they are batched."""

from dataclasses import dataclass
from typing import Dict, Type

from cfg.validation import Fields

__all__ = ["DATA_CONFIGS", "DataConfig", "TsDataConfig"]


@dataclass
class DataConfig:
    """What every data source has.

    Args:
        name: the source, as `app.data.SOURCES` knows it.
        batch_size: sequences in a batch.
        validation_fraction: share of each class of the training set that is held out to choose the epoch on.
        standardize: scale every channel to mean 0 and standard deviation 1, measured on training data only.

    Raises:
        ConfigError: a field breaks its rule; the message starts with ``data.<field>``.
    """

    name: str = "???"
    batch_size: int = 16
    validation_fraction: float = 0.2
    standardize: bool = True

    def __post_init__(self) -> None:
        self.validate()

    def validate(self) -> None:
        """Check every field. A subclass calls ``super().validate()`` and then checks its own."""
        fields = Fields(self, "data")
        fields.text("name")
        fields.integer("batch_size", 1, 1 << 20)
        fields.number("validation_fraction", 0, 1, open_low=True, open_high=True)
        fields.flag("standardize")


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
