"""One function for each format: it writes the file and returns a function that runs it."""

import contextlib
import inspect
import logging
import re
from pathlib import Path
from typing import Any, Callable, ContextManager, Dict, List, Sequence

import torch

from app.errors import RunError
from app.export.modules import EncoderStep, WholeEncoder

__all__ = ["LONGEST", "any_size", "write_onnx", "write_torch_export"]

LONGEST = 1 << 16
"""Largest number of tokens in a graph for any length."""

_NOT_ONE = re.compile(r"expression Ne\(.*, 1\) on")
Runner = Callable[[Sequence[torch.Tensor]], List[torch.Tensor]]


def write_onnx(module: WholeEncoder, example: Sequence[torch.Tensor], path: Path, dynamic: bool) -> Runner:
    """Write ``path``, run by onnxruntime.

    Args:
        module: what the graph computes.
        example: its inputs.
        path: ends in ``.onnx``.
        dynamic: whether the only input may have any number of sequences and tokens.

    Raises:
        RunError: a package is missing, or there is no such graph.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise RunError(f"job.format=onnx needs the package {error.name!r}; "
                       "pip install 'myfla[onnx]'") from None
    for name in ("onnx_ir", "onnxscript", "torch.onnx"):  # they log a line for every folded constant
        logging.getLogger(name).setLevel(logging.ERROR)
    names = _input_names(module)
    given: Any = (_program(module, example, True, "onnx"),) if dynamic else (module, tuple(example))
    # Of a program that has been recorded, the shapes are the names of its axes alone.
    axes: Dict[str, Any] = {"dynamic_shapes": _any_size_shapes()} if dynamic else {}
    program = torch.onnx.export(*given, dynamo=True, verbose=False, input_names=names,
                                output_names=module.names, **axes)
    if program is None:
        raise RunError("job.format=onnx: torch made no ONNX program")
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
        RunError: this PyTorch cannot export, or there is no such graph.
    """
    torch.export.save(_program(module, example, dynamic, "torch_export"), str(path))
    loaded = torch.export.load(str(path)).module()

    def run(inputs: Sequence[torch.Tensor]) -> List[torch.Tensor]:
        return list(loaded(*inputs))

    return run


def _program(module: WholeEncoder, example: Sequence[torch.Tensor], dynamic: bool, form: str) -> Any:
    if not hasattr(torch, "export") or not hasattr(torch.compiler, "is_exporting"):
        raise RunError(f"job.format={form} needs PyTorch 2.7 or newer; got {torch.__version__}; upgrade torch")
    if not dynamic:
        return torch.export.export(module, tuple(example), strict=False)
    deferred = "prefer_deferred_runtime_asserts_over_guards"  # newer than PyTorch 2.7
    more: Dict[str, Any] = {deferred: True} if deferred in inspect.signature(torch.export.export).parameters else {}
    try:
        with any_size():
            return _without_bounds(
                torch.export.export(module, tuple(example), dynamic_shapes=_any_size_shapes(), strict=False, **more))
    except Exception as problem:  # PyTorch's exporter raises many kinds
        raise RunError(f"job.length must be given for this encoder, of which PyTorch makes no graph for every length: "
                       f"{str(problem).strip().splitlines()[0]}; job.length=TOKENS") from None


def _any_size_shapes() -> Any:
    return ({0: torch.export.Dim("batch"), 1: torch.export.Dim("length", min=2, max=LONGEST)},)


def any_size() -> ContextManager[Any]:
    """Record sizes that are 1 at some lengths only, as PyTorch's own ONNX exporter does.

    A stem makes one step of several. Without this setting the graph would be refused, because for short sequences the
    number of steps is 1.
    """
    from torch.fx.experimental import _config as settings

    if not hasattr(settings, "backed_size_oblivious"):
        return contextlib.nullcontext()
    return settings.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]


def _without_bounds(program: Any) -> Any:
    """The graph without its checks that a size is not 1.

    PyTorch records such a check where it asks for the memory layout of a tensor, on which no value depends. The
    comparison with PyTorch includes a sequence of one step.
    """
    for node in list(program.graph.nodes):
        if node.target is torch.ops.aten._assert_scalar.default and _NOT_ONE.search(str(node.args[-1])):
            program.graph.erase_node(node)
    program.graph_module.recompile()
    return program


def _input_names(module: WholeEncoder) -> List[str]:
    return ["x", *(module.state_names if isinstance(module, EncoderStep) else [])]
