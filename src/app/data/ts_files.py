"""Your own `.ts` files: ``data=ts data.train_path=A_TRAIN.ts data.test_path=A_TEST.ts``."""

from dataclasses import replace
from pathlib import Path

import torch

from app.data.check import warn_shared
from app.data.ts import read_ts
from app.errors import data_error
from cfg.data import TsDataConfig
from encoders.training.data.sequences import IGNORE, SequenceData, SequenceSet

__all__ = ["load"]


def load(config: TsDataConfig, targets: bool = True) -> SequenceData:
    """Read the files and check that they belong together.

    Args:
        config: which files.
        targets: whether labels are needed; without, files may have none.

    Raises:
        DataError: a file is missing or breaks the format, or the two differ in classes or channels.
    """
    missing = config.missing != "error"
    first = read_ts(config.train_path, missing, targets)
    train, classes = _of(config.train_path, first.data), first.classes
    size = train.sequences[0].shape[1]
    names = ["target"] if classes is None and first.labelled else None
    if config.test_path is None:
        return SequenceData(train, None, classes, size, target_names=names)
    warn_shared([Path(config.train_path)], [Path(config.test_path)])
    second = read_ts(config.test_path, missing, targets)
    test, test_classes = second.data, second.classes
    if sorted(classes or ()) != sorted(test_classes or ()) or first.labelled != second.labelled:
        raise data_error(config.test_path, "@classLabel", f"must name the classes of {config.train_path}",
                         test_classes or ("@targetLabel" if second.labelled else "no labels"))
    if classes is not None and isinstance(test.targets, torch.Tensor):
        place = torch.tensor([*(classes.index(name) for name in test_classes or ()), IGNORE])
        test = SequenceSet(test.sequences, place[test.targets.clamp(min=-1)])
    test = _of(config.test_path, test)
    test_size = test.sequences[0].shape[1]
    if size != test_size:
        raise data_error(config.test_path, "number of channels", f"must be {size} as in training", test_size)
    return SequenceData(train, test, classes, size, target_names=names)


def _of(path: str, part: SequenceSet) -> SequenceSet:
    return replace(part, files=[Path(path).name] * len(part))
