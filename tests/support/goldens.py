"""The recorded outputs of the official kernels, case by case.

``tests/myfla/golden/<name>.safetensors`` holds tensors under ``case/group/name`` and, in its metadata, the versions
and device it was recorded with and the parameters of every case.
"""

import json
from pathlib import Path
from typing import Any, Dict

import torch
from safetensors import safe_open

FOLDER = Path(__file__).resolve().parents[1] / "myfla" / "golden"
REQUIRED = ("source", "torch", "triton", "device", "seed", "cases")


class Case:
    """One recorded case.

    Attributes:
        params: what it was recorded with.
    """

    def __init__(self, name: str, params: Dict[str, Any], tensors: Dict[str, torch.Tensor]) -> None:
        self.name, self.params, self._tensors = name, params, tensors

    def group(self, name: str) -> Dict[str, torch.Tensor]:
        """The tensors below ``name/``, without that prefix; integers as int64."""
        prefix = name.rstrip("/") + "/"
        found = {key[len(prefix) :]: value for key, value in self._tensors.items() if key.startswith(prefix)}
        return {key: value.long() if value.dtype == torch.int32 else value for key, value in found.items()}

    def __repr__(self) -> str:
        return self.name


def load(name: str) -> Dict[str, Case]:
    """All cases of one file; refuses a file that does not say where it comes from."""
    path = FOLDER / f"{name}.safetensors"
    with safe_open(str(path), "pt") as file:
        metadata = file.metadata() or {}
        missing = [key for key in REQUIRED if key not in metadata]
        if missing:
            raise ValueError(f"goldens: {path.name} lacks the metadata {missing}; record it again with record.py")
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    cases: Dict[str, Case] = {}
    for case, params in json.loads(metadata["cases"]).items():
        own = {key[len(case) + 1 :]: value for key, value in tensors.items() if key.startswith(case + "/")}
        cases[case] = Case(case, params, own)
    return cases


def names(name: str) -> list:
    """The names of all cases of one file."""
    return list(load(name))
