"""Japanese Vowels: recognise one of nine speakers from 7 to 29 steps of 12 cepstrum coefficients.

The two files are in ``files``, with their attribution (UCI, CC BY 4.0) in ``files/ATTRIBUTION.md``.
"""

from pathlib import Path

from app.data.ts import read_ts
from app.errors import data_error
from cfg.data import DataConfig
from encoders.training.data.sequences import SequenceData

__all__ = ["FILES", "load"]

FILES = Path(__file__).parent / "files"


def load(config: DataConfig) -> SequenceData:
    """The 270 training and 370 test sequences.

    Raises:
        DataError: a file is missing or damaged, or has lost lines.
    """
    train, classes, _ = read_ts(FILES / "JapaneseVowels_TRAIN.ts")
    test = read_ts(FILES / "JapaneseVowels_TEST.ts").data
    for part, data, count in (("TRAIN", train, 270), ("TEST", test, 370)):
        if len(data) != count:
            path = str(FILES / f"JapaneseVowels_{part}.ts")
            raise data_error(path, "number of sequences", f"must be {count}", len(data), "install the package anew")
    return SequenceData(train, test, classes, train.sequences[0].shape[1])
