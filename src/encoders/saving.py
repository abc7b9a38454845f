"""Writing an encoder: ``encoder.safetensors`` and a manifest ``encoder.json``. No pickle.

The manifest is written last but one step: first the new weights under a name of their own, then the manifest that
names their digest, then the weights take their final name. Whenever a writer is killed, the manifest describes
weights that are there, under one name or the other.
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
FORMAT_VERSION = 2  # 1 had no input pipeline


class Savable(Protocol):
    """What `save_encoder` needs of an encoder."""

    config: EncoderConfig
    strategy: BlockBuilder
    fingerprint: str
    pipeline: Optional[InputPipeline]

    def state_dict(self) -> Dict[str, Any]:
        """Its tensors by name."""


def save_encoder(encoder: Savable, path: Union[str, Path], pipeline: Optional[InputPipeline] = None) -> Path:
    """Write an encoder's config, weights and input pipeline.

    Args:
        encoder: any strategy's.
        pipeline: what brings raw data into the form that it was trained on; None for its own, if it has one.
        path: a folder (made if missing), for ``encoder.safetensors`` and ``encoder.json`` in it; or the name of the
            ``.safetensors`` file, with the manifest beside it. An older encoder there is replaced.

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
    """Where weights of that digest stand until the manifest names them."""
    return weights.with_name(f".{weights.stem}-{sha[:16]}.safetensors")


def _versions(origin: str) -> Dict[str, str]:
    return {"encoder": origin, "myfla": __version__, "python": platform.python_version(),
            "safetensors": safetensors.__version__, "torch": str(torch.__version__)}
