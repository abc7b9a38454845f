"""Official checkpoint folders: which files hold which weights, read without ever unpickling."""

from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Tuple, Union

import torch
from safetensors import safe_open

from myfla.models.configuration import read_json
from myfla.utils.errors import CheckpointError, message

__all__ = ["INDEX_NAME", "WEIGHTS_NAME", "WeightFiles"]

WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
SHOWN = 5


class WeightFiles:
    """The tensors of a checkpoint folder, found by name and read one by one.

    Args:
        folder: holds ``model.safetensors``, or ``model.safetensors.index.json`` and the files it names.

    Raises:
        CheckpointError: no weights, only pickled ones, a file that is missing, cut short or no safetensors, or an
            index that does not tell what is in its files.

    Example:
        >>> import tempfile, pathlib, safetensors.torch
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> safetensors.torch.save_file({"w": torch.ones(2)}, str(folder / "model.safetensors"))
        >>> WeightFiles(folder).read("w")
        tensor([1., 1.])
    """

    def __init__(self, folder: Union[str, Path]) -> None:
        self.folder = Path(folder)
        self._files: Dict[str, Any] = {}
        self._where: Dict[str, Path] = {}
        paths, mapped = self._find()
        for path in paths:
            self._open(path)
        if mapped is not None:
            self._hold_to_index(mapped)

    @property
    def names(self) -> List[str]:
        """Names of all tensors."""
        return list(self._where)

    def path(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._where[name]

    def read(self, name: str) -> torch.Tensor:
        """One tensor, on the CPU, in separate memory."""
        path = self._where[name]
        try:
            return self._files[str(path)].get_tensor(name).clone()  # what was read may be a view of the open file
        except Exception as problem:  # safetensors has its own errors, torch lacks some dtypes
            hint = "fetch the file again, or save it in a number format that this PyTorch has"
            raise CheckpointError(message(str(path), name, "must be readable", str(problem), hint)) from None

    def _find(self) -> Tuple[List[Path], Optional[Dict[str, str]]]:
        """The weight files, and which tensor the index expects where."""
        single, index = self.folder / WEIGHTS_NAME, self.folder / INDEX_NAME
        if single.is_file():
            return [single], None
        if not index.is_file():
            pickled = sorted(path.name for pattern in PICKLES for path in self.folder.glob(pattern))
            if pickled:
                hint = "pickled files can run code and are never opened; convert them with safetensors"
                raise CheckpointError(message(str(self.folder), WEIGHTS_NAME, "must be there", pickled[:SHOWN], hint))
            there = sorted(path.name for path in self.folder.iterdir()) if self.folder.is_dir() else []
            hint = f"or {INDEX_NAME} and the files it names"
            raise CheckpointError(message(str(self.folder), WEIGHTS_NAME, "must be there", there[:20], hint))
        mapped = read_json("checkpoint", index)[1].get("weight_map")
        if not isinstance(mapped, dict) or not mapped or not all(isinstance(name, str) for name in mapped.values()):
            rule = "must map names of tensors to names of files"
            raise CheckpointError(message(str(index), "weight_map", rule, type(mapped).__name__))
        for name in mapped.values():
            if Path(name).name != name or not name.endswith(".safetensors"):
                rule = "must name .safetensors files in this folder"
                raise CheckpointError(message(str(index), "weight_map", rule, name, "other places are not read"))
        return [self.folder / name for name in sorted(set(mapped.values()))], mapped

    def _open(self, path: Path) -> None:
        if not path.is_file():
            hint = f"{INDEX_NAME} names it; fetch it too"
            raise CheckpointError(message(str(self.folder), path.name, "must be there", "no such file", hint))
        try:
            file = safe_open(str(path), framework="pt")
            names = list(file.keys())
        except Exception as problem:  # any error of safetensors for bytes in another format
            rule = "must be safetensors"
            raise CheckpointError(message(str(path), "format", rule, str(problem), _why(path))) from None
        self._files[str(path)] = file
        for name in names:
            if name in self._where:
                rule = f"must be in one file; it is in {self._where[name].name} too"
                raise CheckpointError(message(str(path), name, rule, path.name, "remove one of them"))
            self._where[name] = path

    def _hold_to_index(self, mapped: Dict[str, str]) -> None:
        index = str(self.folder / INDEX_NAME)
        for name, file in mapped.items():
            found = self._where.get(name)
            if found is None or found.name != file:
                got = "no such tensor" if found is None else f"it is in {found.name}"
                raise CheckpointError(message(index, name, f"must be in {file}", got, "fetch the folder again"))
        extra = [name for name in self._where if name not in mapped]
        if extra:
            hint = "the index and the files are of different checkpoints"
            raise CheckpointError(message(index, "weight_map", "must list every tensor", extra[:SHOWN], hint))


def check_names(folder: Union[str, Path], needed: Iterable[str], found: Iterable[str], config: str) -> None:
    """Refuse weights of which some are missing or superfluous.

    Args:
        folder: where they come from.
        needed, found: names of tensors.
        config: what was built from the folder's config, for the message.

    Raises:
        CheckpointError: the first few names, and how many there are.
    """
    needed, found = set(needed), set(found)
    for rule, names in (("must hold every tensor of", needed - found), ("must hold nothing but", found - needed)):
        if names:
            missing = names <= needed
            listed = sorted(names)
            got = f"{'missing' if missing else 'extra'}: {', '.join(listed[:SHOWN])}"
            got += f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            hint = "the weights and config.json must be of one model"
            if missing and names == {"lm_head.weight"}:
                hint = "the folder holds a model without an output projection; load it with myfla.models.load_backbone"
            raise CheckpointError(f"{folder}: weights {rule} {config}; {got}; {hint}")


def check_shape(path: Path, name: str, found: Tuple[int, ...], needed: Tuple[int, ...]) -> None:
    """Refuse a tensor that does not fit."""
    if tuple(found) != tuple(needed):
        rule = f"must have shape {list(needed)} as config.json says"
        raise CheckpointError(message(str(path), name, rule, list(found), "the config is of another model"))


def _why(path: Path) -> str:
    """A guess at what a file that is not safetensors is."""
    with open(str(path), "rb") as file:
        head = file.read(8)
    if head[:2] == b"PK" or head[:1] == b"\x80":
        return "this is a pickle, which is never opened; convert it with safetensors"
    if head.startswith(b"version"):
        return "this is a Git LFS pointer; fetch the file itself"
    return "the file is cut short, damaged or of another kind; fetch it again"
