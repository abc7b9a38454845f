"""Reading an encoder that `encoders.saving` wrote."""

from pathlib import Path
from typing import Any, Dict, Optional, Tuple, Union

import torch
from safetensors.torch import load as parse_tensors

from encoders.build import build_encoder
from encoders.errors import InputError, PluginError, UnknownEncoderError
from encoders.files import digest, parse_manifest, read_bytes, refuse, weights_name
from encoders.pipeline import InputPipeline
from encoders.plugins import RUN_TIME
from encoders.saving import FORMAT, FORMAT_VERSION, encoder_paths, save_encoder, staged_path
from encoders.stack import Encoder
from myfla.utils.errors import CheckpointError

__all__ = ["FORMAT", "FORMAT_VERSION", "load_encoder", "read_encoder", "save_encoder"]

TASK = "task.safetensors"
"""The file with the head of a trained run; an encoder in the same folder must have a pipeline."""
_REMEDY = "use a copy, or write it again with encoder.save"
_PICKLES = (b"PK\x03\x04", b"\x80")


def load_encoder(path: Union[str, Path], device: Any = None) -> Encoder:
    """Read an encoder that `Encoder.save` or a run has written.

    Nothing in the files is executed, and the state of torch's random generators does not change.

    Args:
        path: the folder, the ``.safetensors`` file or the ``.json`` file.
        device: the device of the encoder.

    Returns:
        The encoder, in eval mode, with the dtypes in which it was saved. The encoder of a trained run takes raw data:
        its ``pipeline`` is the run's `InputPipeline`.

    Raises:
        CheckpointError: a file is missing, damaged, foreign or unsafe, or its encoder cannot be built here.

    Example:
        >>> import tempfile
        >>> encoder = build_encoder({"name": "gated_deltanet", "input_size": 3})
        >>> load_encoder(encoder.save(tempfile.mkdtemp())).config == encoder.config
        True
    """
    encoder, pipeline = read_encoder(path, device)
    encoder.pipeline = pipeline
    return encoder


def read_encoder(path: Union[str, Path], device: Any = None) -> Tuple[Encoder, Optional[InputPipeline]]:
    """The two parts of a saved encoder: an encoder that reads prepared data, and the pipeline that prepares them or
    None.

    Example:
        >>> import tempfile
        >>> folder = build_encoder({"name": "gated_deltanet", "vocab_size": 9}).save(tempfile.mkdtemp())
        >>> read_encoder(folder)[1] is None
        True
    """
    weights, manifest_path = encoder_paths(Path(path))
    if not manifest_path.exists() and weights.exists():
        _check_no_pickle(weights, read_bytes(weights, _REMEDY))
        raise refuse(manifest_path, "must lie beside the weights, to say which encoder they belong to", "no such file",
                     "copy both files")
    manifest = parse_manifest(manifest_path, FORMAT, FORMAT_VERSION, _REMEDY)
    name = weights_name(manifest_path, manifest)
    weights = manifest_path.with_name(name)
    tensors = _read_weights(weights, manifest["files"][name])
    try:
        with torch.random.fork_rng(devices=[]):
            config: Any = manifest.get("config")
            _check_fit(build_encoder(config, device="meta"), tensors, weights)
            encoder = build_encoder(config)
    except (UnknownEncoderError, PluginError) as problem:
        remedy = _remedy(str(manifest.get("versions", {}).get("encoder")))
        raise refuse(manifest_path, "must name an encoder that is installed", str(problem), remedy) from problem
    except CheckpointError:
        raise
    except (TypeError, ValueError) as problem:
        raise refuse(manifest_path, "must hold a config of its encoder", str(problem), _REMEDY) from problem
    pipeline = _read_pipeline(manifest_path, manifest, encoder)
    for key, value in encoder.state_dict(keep_vars=True).items():
        value.data = tensors[key]  # as saved, dtype included
    return encoder.to(device=device).eval(), pipeline


def _remedy(origin: str) -> str:
    """What to do to get the strategy that a manifest names."""
    how, _, place = origin.partition(" ")
    if how != RUN_TIME:
        return f"install {origin}"
    module, _, name = place.partition(":")
    return f"register it first, as the program that saved it did: encoders.register_strategy({name}), of {module}"


def _read_pipeline(path: Path, manifest: Dict[str, Any], encoder: Encoder) -> Optional[InputPipeline]:
    facts = manifest.get("pipeline")
    if facts is None:
        if path.with_name(TASK).exists():
            raise refuse(path, "must hold the input pipeline of its run", f"none, and {TASK} beside it",
                         "the run was trained before runs kept their columns and scales; train it again")
        return None
    try:
        pipeline = InputPipeline.from_facts(facts)
    except (InputError, TypeError, AttributeError) as problem:
        raise refuse(path, "must hold an input pipeline", str(problem), _REMEDY) from None
    want = (encoder.config.input_size, encoder.config.vocab_size)
    if (pipeline.width, pipeline.vocab_size) != want:
        raise refuse(path, f"must hold a pipeline for input_size, vocab_size = {want}",
                     str((pipeline.width, pipeline.vocab_size)), _REMEDY)
    return pipeline


def _read_weights(path: Path, entry: Dict[str, Any]) -> Dict[str, torch.Tensor]:
    staged = staged_path(path, entry["sha256"])
    if staged.exists() and digest(read_bytes(staged, _REMEDY)) == entry["sha256"]:
        path = staged  # the writing process was killed before the last rename
    data = read_bytes(path, _REMEDY)
    _check_no_pickle(path, data)
    if len(data) != entry["bytes"]:
        raise refuse(path, f"must have {entry['bytes']} bytes, as its manifest says", str(len(data)),
                     "it was cut short or belongs to another manifest; " + _REMEDY)
    if digest(data) != entry["sha256"]:
        raise refuse(path, "must match the sha256 in its manifest", "another content",
                     "it is damaged or belongs to another manifest; " + _REMEDY)
    try:
        return parse_tensors(data)
    except Exception as problem:  # safetensors has an error class of its own per version
        raise refuse(path, "must be a safetensors file", str(problem), _REMEDY) from None


def _check_no_pickle(path: Path, data: bytes) -> None:
    # The length of a safetensors header comes first and can begin as a pickle does; a JSON object follows it.
    header = data[8:9] == b"{" and int.from_bytes(data[:8], "little") <= len(data) - 8
    if data.startswith(_PICKLES) and not header:
        raise refuse(path, "must be a safetensors file", "a pickle or zip file",
                     "loading one runs code; load it where you trust it and write it with encoder.save")


def _check_fit(model: Encoder, tensors: Dict[str, torch.Tensor], path: Path) -> None:
    own = model.state_dict()
    missing, extra = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    if missing or extra:
        raise refuse(path, "must hold the tensors of the encoder in its manifest",
                     f"missing {missing[:3]}, unknown {extra[:3]}", "it belongs to another encoder; " + _REMEDY)
    for name, want in own.items():
        got = tensors[name]
        if got.shape != want.shape or got.is_floating_point() != want.is_floating_point():
            raise refuse(path, f"must hold {name} as {list(want.shape)} {want.dtype}", f"{list(got.shape)} {got.dtype}",
                         "it belongs to another encoder; " + _REMEDY)
