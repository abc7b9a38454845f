"""``job=export``: a trained encoder for other runtimes, each file compared with PyTorch."""

import logging
import shutil
from pathlib import Path
from typing import Any, Dict

import torch

from app.errors import RunError
from app.export.formats import write_onnx, write_torch_export
from app.export.modules import EncoderStep, WholeEncoder
from app.export.parity import compare_step, compare_whole, require
from app.export.samples import SAMPLES
from app.export.staged import staged
from app.run_folder import overrides, relative, write_json
from app.streaming.model import StreamModel, load_model
from app.trained import TASK
from app.training.quiet import quiet
from cfg.app import AppConfig
from cfg.export import ExportJobConfig
from cfg.validation import config_error
from encoders.io import read_encoder

__all__ = ["run"]

log = logging.getLogger(__name__)
FACTS, SAMPLE = "export.json", "sample.py"


def run(config: AppConfig, folder: Path) -> float:
    """Write the files into ``folder``, with `SAMPLE` and, last, `FACTS`; after an error there are none.

    Returns:
        the largest difference from PyTorch.

    Raises:
        ConfigError, RunError: nothing to export, an older export, a missing package, or a file that computes something
            else.
    """
    job: ExportJobConfig = config.job
    if config.run is None:
        raise config_error("run", "must be the folder of a finished run with a causal encoder", None,
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
    model = load_model(source, "embedding", attention=True)
    facts: Dict[str, Any] = {"format": job.format, "run": relative(source), "torch": torch.__version__}
    with torch.no_grad(), staged(folder, FACTS) as place:
        facts.update(_weights(model, source, place) if job.format == "safetensors" else _graphs(model, job, place))
        require(facts["difference"], job.tolerance)
        (place / SAMPLE).write_text(SAMPLES[job.format], encoding="utf-8")
        write_json(facts, place / FACTS)
    worst = max(facts["difference"].values())
    log.info("wrote %s; largest difference from PyTorch %.2g; run python %s",
             ", ".join(relative(folder / name) for name in facts["difference"]), worst, relative(folder / SAMPLE))
    return worst


def _graphs(model: StreamModel, job: ExportJobConfig, folder: Path) -> Dict[str, Any]:
    """Write ``step`` and ``encoder``."""
    suffix = ".onnx" if job.format == "onnx" else ".pt2"
    step = EncoderStep(model.encoder, model.pipeline, job.context).eval()
    whole = WholeEncoder(model.encoder, model.pipeline, model.task).eval()
    dtype, size, differences = model.weight.dtype, model.input_size, {}
    example = (torch.zeros(job.batch, 1, size, dtype=dtype), *step.first_states(job.batch))
    path = folder / f"step{suffix}"
    runner = write_onnx(step, example, path) if job.format == "onnx" else write_torch_export(step, example, path, False)
    differences[path.name] = compare_step(step, runner, job.batch, job.steps)
    path, dynamic = folder / f"encoder{suffix}", job.length is None
    if job.format == "torch_export":
        # Sizes that nothing else in the graph has, so that no rule for one of them is taken for a rule of the other.
        shape = (3, 101) if dynamic else (job.batch, job.length)
        runner = write_torch_export(whole, (torch.zeros(*shape, size, dtype=dtype),), path, dynamic)
    elif not dynamic:
        runner = write_onnx(whole, (torch.zeros(job.batch, job.length, size, dtype=dtype),), path)
    if job.format == "torch_export" or not dynamic:
        lengths = (2, 64, 101, 200) if dynamic else (job.length,)
        differences[path.name] = compare_whole(whole, runner, job.batch, lengths)
    inputs = {name: {"shape": list(x.shape), "dtype": str(x.dtype).split(".")[-1]}
              for name, x in zip(["x", *step.state_names], example)}
    classes = None if model.pipeline is None else model.pipeline.classes
    return {"difference": differences, "steps": job.steps, "inputs": inputs, "outputs": step.names,
            "encoder_outputs": whole.names, "length": job.length, "classes": classes}


def _weights(model: StreamModel, source: Path, folder: Path) -> Dict[str, Any]:
    """Write the encoder, and the head where there is one; then read it back."""
    name = model.encoder.save(folder, model.pipeline).name
    if model.task is not None:
        shutil.copyfile(source / TASK, folder / TASK)
    again = read_encoder(folder)[0]
    held = again.state_dict()
    for key, value in model.encoder.state_dict().items():
        if not torch.equal(value, held[key]):
            raise RunError(f"{name} must hold what was written; {key} differs; check the disk")
    x = torch.randn(2, 50, model.input_size, dtype=model.weight.dtype)
    gap = (model.encoder(x).embedding - again(x).embedding).abs().max()
    return {"difference": {name: float(gap)}, "head": TASK if model.task is not None else None}
