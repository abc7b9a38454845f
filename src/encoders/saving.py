"""Writing an encoder: ``encoder.safetensors`` and a manifest ``encoder.json``. No pickle.

First the new weights are written under a temporary name, then the manifest with their digest, and then the weights get
their final name. Whenever the process is killed, the manifest describes weights that exist under one of the two names.
"""

import platform
from pathlib import Path
from typing import Any, Dict, Optional, Protocol, Tuple, Union

import safetensors
import torch
from safetensors.torch import save as format_tensors

from cfg.encoder import EncoderConfig
from cfg.encoder_mapping import portable_mapping
from encoders.contract import BlockBuilder
from encoders.files import digest, seal_manifest, write_atomic
from encoders.pipeline import InputPipeline
from myfla import __version__

__all__ = ["FORMAT", "FORMAT_VERSION", "Savable", "encoder_paths", "save_encoder", "staged_path"]

FORMAT = "myfla-encoder"
FORMAT_VERSION = 2  # version 1 had no input pipeline


class Savable(Protocol):
    """The interface of an encoder that `save_encoder` uses."""

    config: EncoderConfig
    strategy: BlockBuilder
    fingerprint: str
    pipeline: Optional[InputPipeline]

    def state_dict(self) -> Dict[str, Any]:
        """Its tensors by name."""


def save_encoder(encoder: Savable, path: Union[str, Path], pipeline: Optional[InputPipeline] = None) -> Path:
    """Write an encoder's config, weights and input pipeline.

    Args:
        encoder: an encoder of any strategy.
        pipeline: prepares raw data for it; None: the encoder's own pipeline, if it has one.
        path: a folder for ``encoder.safetensors`` and ``encoder.json``, made if it does not exist; or the name of the
            ``.safetensors`` file, with the manifest in the same folder. An older encoder there is replaced.

    Returns:
        The path of the weights file.

    Raises:
        OSError: the folder cannot be written; an older encoder there stays readable.
    """
    weights, manifest = encoder_paths(Path(path))
    weights.parent.mkdir(parents=True, exist_ok=True)
    # clone: safetensors refuses tensors that share memory
    pipeline = encoder.pipeline if pipeline is None else pipeline
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in encoder.state_dict().items()}
    data = format_tensors(tensors, {"format": FORMAT})
    sha = digest(data)
    staged = staged_path(weights, sha)
    write_atomic(staged, data)
    write_atomic(manifest, seal_manifest({
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "config": portable_mapping(encoder.config),
        "fingerprint": encoder.fingerprint,
        "pipeline": None if pipeline is None else pipeline.facts(),
        "files": {weights.name: {"sha256": sha, "bytes": len(data)}},
        "versions": _versions(encoder.strategy.origin),
    }))
    staged.replace(weights)
    for old in weights.parent.glob(staged_path(weights, "*").name):
        old.unlink()  # left by a writer that was killed
    return weights


def encoder_paths(path: Path) -> Tuple[Path, Path]:
    """Weights file and manifest that a folder, or either file, stands for."""
    if path.suffix == ".json":
        path = path.with_suffix(".safetensors")
    if path.suffix != ".safetensors" or path.is_dir():
        path = path / "encoder.safetensors"
    return path, path.with_suffix(".json")


def staged_path(weights: Path, sha: str) -> Path:
    """The temporary name of weights with that digest."""
    return weights.with_name(f".{weights.stem}-{sha[:16]}.safetensors")


def _versions(origin: str) -> Dict[str, str]:
    return {"encoder": origin, "myfla": __version__, "python": platform.python_version(),
            "safetensors": safetensors.__version__, "torch": str(torch.__version__)}
