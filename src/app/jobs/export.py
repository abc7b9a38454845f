"""``job=export``: a trained model for other runtimes, each file compared with PyTorch."""

import logging
import shutil
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import torch

from app.errors import RunError
from app.export.formats import write_onnx, write_torch_export
from app.export.modules import EncoderStep, WholeEncoder
from app.export.parity import compare_step, compare_whole, require
from app.export.samples import SAMPLES
from app.export.staged import staged
from app.run_folder import overrides, relative, write_json
from app.streaming.model import why_no_stream
from cfg.app import AppConfig
from cfg.export import ExportJobConfig
from cfg.validation import config_error
from encoders.io import read_encoder
from encoders.training.loop.quiet import quiet
from encoders.training.trained import TASK, Trained, load_trained

__all__ = ["run"]

log = logging.getLogger(__name__)

_SUFFIX = {"onnx": ".onnx", "torch_export": ".pt2"}
_WRITE = {"onnx": write_onnx, "torch_export": write_torch_export}
_SIZES = ((3, 101), (2, 1), (1, 2), (2, 64), (1, 200), (4, 9))
"""Sequences and tokens at which a graph for any size is compared."""

FACTS, SAMPLE = "export.json", "sample.py"


def run(config: AppConfig, folder: Path) -> float:
    """Write the files into ``folder``, with `SAMPLE` and, last, `FACTS`; after an error there are none.

    Returns:
        the largest difference from PyTorch.

    Raises:
        ConfigError, RunError: there is no model, or an older export, or a package is missing, or a file computes other
            results.
    """
    job = config.job_as(ExportJobConfig)
    if config.run is None:
        raise config_error("run", "must be the folder of a finished run", None,
                           "python -m app job=export run=outputs/app/...")
    for override in overrides():
        key = override.lstrip("+~").split("=", 1)[0].split("@", 1)[0]
        if key.split(".", 1)[0] in ("encoder", "data", "trainer"):
            raise config_error(key, "must be left out with job=export", override, "they come from the run")
    if (folder / FACTS).exists():
        raise RunError(f"hydra.run.dir must be a folder without another export's {FACTS}; got {str(folder)!r}; "
                       "leave hydra.run.dir out to get a new folder")
    quiet()
    torch.manual_seed(config.seed)
    source = Path(config.run)
    trained = load_trained(source)
    facts: Dict[str, Any] = {"format": job.format, "run": relative(source), "torch": torch.__version__}
    with torch.no_grad(), staged(folder, FACTS) as place:
        facts.update(_weights(trained, place) if job.format == "safetensors" else _graphs(trained, job, place))
        require(facts["difference"], job.tolerance)
        kind = job.format if "inputs" in facts or job.format == "safetensors" else f"{job.format}_whole"
        (place / SAMPLE).write_text(SAMPLES[kind], encoding="utf-8")
        write_json(facts, place / FACTS)
    worst = max(facts["difference"].values())
    log.info("wrote %s; largest difference from PyTorch %.2g; run python %s",
             ", ".join(relative(folder / name) for name in facts["difference"]), worst, relative(folder / SAMPLE))
    return worst


def _graphs(trained: Trained, job: ExportJobConfig, folder: Path) -> Dict[str, Any]:
    """Write ``encoder`` and, where the encoder can be fed in pieces, ``step``."""
    problem = why_no_stream(trained)
    if job.graphs == "step" and problem is not None:
        raise RunError(f"job.graphs must be whole for this run: {problem}")
    facts: Dict[str, Any] = {"difference": {}}
    if job.graphs != "whole" and problem is None:
        facts.update(_step(trained, job, folder, facts["difference"]))
    if job.graphs != "step":
        facts.update(_whole(trained, job, folder, facts["difference"]))
    pipeline = trained.pipeline
    if pipeline is not None:
        facts.update(classes=_list(pipeline.classes), targets=_list(pipeline.targets), data=pipeline.describe(),
                     features=None if pipeline.schema is None else pipeline.schema.names)
    return facts


def _step(trained: Trained, job: ExportJobConfig, folder: Path, differences: Dict[str, float]) -> Dict[str, Any]:
    step = EncoderStep(trained.encoder, trained.pipeline, job.context).eval()
    example = (step.sample(job.batch, 1), *step.first_states(job.batch))
    path = folder / f"step{_SUFFIX[job.format]}"
    runner = _WRITE[job.format](step, example, path, False)
    differences[path.name] = compare_step(step, runner, job.batch, job.steps)
    inputs = {name: _size(x.shape, x) for name, x in zip(["x", *step.state_names], example)}
    return {"steps": job.steps, "inputs": inputs, "outputs": step.names}


def _whole(trained: Trained, job: ExportJobConfig, folder: Path, differences: Dict[str, float]) -> Dict[str, Any]:
    whole = WholeEncoder(trained.encoder, trained.pipeline, trained.task).eval()
    path, dynamic = folder / f"encoder{_SUFFIX[job.format]}", job.length is None
    # Sizes that nothing else in the graph has, so that equal sizes are not taken for the same dimension.
    size = (3, 101) if job.length is None else (job.batch, job.length)
    example = whole.sample(*size)
    runner = _WRITE[job.format](whole, (example,), path, dynamic)
    differences[path.name] = compare_whole(whole, runner, _SIZES if dynamic else [size])
    shape = ["batch", "length", *example.shape[2:]] if dynamic else list(example.shape)
    return {"encoder_inputs": {"x": _size(shape, example)}, "encoder_outputs": whole.names, "length": job.length}


def _size(shape: Sequence[Any], x: torch.Tensor) -> Dict[str, Any]:
    return {"shape": list(shape), "dtype": str(x.dtype).split(".")[-1]}


def _list(names: Optional[Sequence[str]]) -> Optional[List[str]]:
    return None if names is None else list(names)


def _weights(trained: Trained, folder: Path) -> Dict[str, Any]:
    """Write the encoder with its input pipeline, and the head where there is one; then read it back."""
    encoder = trained.encoder
    name = encoder.save(folder, trained.pipeline).name
    if trained.task is not None:
        shutil.copyfile(trained.folder / TASK, folder / TASK)
    again, pipeline = read_encoder(folder)
    held = again.state_dict()
    for key, value in encoder.state_dict().items():
        if not torch.equal(value, held[key]):
            raise RunError(f"{name} must hold what was written; {key} differs; check the disk")
    whole, other = WholeEncoder(encoder, trained.pipeline), WholeEncoder(again, pipeline)
    x = whole.sample(2, 50)
    gap = (whole(x)[1] - other(x)[1]).abs().max()
    return {"difference": {name: float(gap)}, "head": TASK if trained.task is not None else None}
