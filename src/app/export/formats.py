"""One function per format: write the files, and return how each is run."""

import logging
from pathlib import Path
from typing import Any, Callable, List, Optional, Sequence

import torch

from app.errors import RunError
from app.export.modules import EncoderStep, WholeEncoder

__all__ = ["LONGEST", "write_onnx", "write_torch_export"]

LONGEST = 1 << 16
"""Most tokens of a graph for any length."""

Runner = Callable[[Sequence[torch.Tensor]], List[torch.Tensor]]


def write_onnx(module: WholeEncoder, example: Sequence[torch.Tensor], path: Path) -> Runner:
    """Write ``path``, run by onnxruntime.

    Args:
        module: what the graph computes, of fixed sizes.
        example: its inputs.
        path: ends in ``.onnx``.

    Raises:
        RunError: a package is missing.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise RunError(f"job.format=onnx needs the package {error.name!r}; "
                       "pip install 'myfla[onnx]'") from None
    for name in ("onnx_ir", "onnxscript", "torch.onnx"):  # a line for every constant that they fold
        logging.getLogger(name).setLevel(logging.ERROR)
    names = _input_names(module)
    program = torch.onnx.export(
        module, tuple(example), dynamo=True, verbose=False, input_names=names, output_names=module.names)
    program.save(str(path))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(inputs: Sequence[torch.Tensor]) -> List[torch.Tensor]:
        fed = {name: x.numpy() for name, x in zip(names, inputs)}
        return [torch.from_numpy(x) for x in session.run(None, fed)]

    return run


def write_torch_export(module: WholeEncoder, example: Sequence[torch.Tensor], path: Path, dynamic: bool) -> Runner:
    """Write ``path``, run by ``torch.export.load``.

    Args:
        module: what the graph computes.
        example: its inputs.
        path: ends in ``.pt2``.
        dynamic: the one input has any number of sequences and tokens.

    Raises:
        RunError: this PyTorch cannot export.
    """
    if not hasattr(torch, "export") or not hasattr(torch.compiler, "is_exporting"):
        raise RunError(f"job.format=torch_export needs PyTorch 2.7 or newer; got {torch.__version__}; upgrade torch")
    shapes: Optional[Any] = None
    options = {}
    if dynamic:
        shapes = ({0: torch.export.Dim("batch"), 1: torch.export.Dim("length", min=2, max=LONGEST)},)
        options["prefer_deferred_runtime_asserts_over_guards"] = True
    program = torch.export.export(module, tuple(example), dynamic_shapes=shapes, strict=False, **options)
    torch.export.save(program, str(path))
    loaded = torch.export.load(str(path)).module()

    def run(inputs: Sequence[torch.Tensor]) -> List[torch.Tensor]:
        return list(loaded(*inputs))

    return run


def _input_names(module: WholeEncoder) -> List[str]:
    return ["x", *(module.state_names if isinstance(module, EncoderStep) else [])]
