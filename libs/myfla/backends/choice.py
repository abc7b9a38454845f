"""The names of the backends, the rule of ``auto``, and the refusals."""

import logging
from typing import Any, Optional, Set, Tuple

import torch

from myfla.backends import official
from myfla.backends.compiler import compiler_problem
from myfla.utils.autograd import records
from myfla.utils.errors import BackendError, message, nearest
from myfla.utils.tracing import tracing

__all__ = ["AUTO_RULE", "BACKENDS", "BackendError", "check_backend", "choose", "why_not"]

BACKENDS = ("auto", "naive", "torch", "compiled", "fla")

AUTO_RULE = (
    "fla for CUDA tensors in bfloat16 or float16, at every length, where fla imports and its kernels are sound for "
    "what is asked (a result, or gradients too); torch for everything else. naive and compiled are never chosen"
)

_log = logging.getLogger(__name__)
_told: Set[Tuple[str, str, str]] = set()


def check_backend(who: str, backend: Any) -> str:
    """A backend's name, if it is one and can work in this process at all.

    Raises:
        BackendError: no such backend; ``compiled`` without a compiler; ``fla`` where it does not import.

    Example:
        >>> check_backend("layer", "torch")
        'torch'
    """
    if not isinstance(backend, str) or backend not in BACKENDS:
        hint = nearest(str(backend), BACKENDS)
        raise BackendError(message(who, "backend", f"must be one of {', '.join(BACKENDS)}", backend, hint))
    problem = None
    if backend == "fla":
        problem = official.import_problem()
    elif backend == "compiled" and not hasattr(torch, "compile"):
        problem = compiler_problem("cpu")
    if problem is not None:
        raise _refusal(who, backend, problem)
    return backend


def choose(
    who: str, backend: str, kernel: official.Kernel, queries: torch.Tensor, keys: torch.Tensor,
    *others: Optional[torch.Tensor],
) -> str:
    """Whose code computes a call: ``naive``, ``torch``, ``compiled`` or ``fla``.

    Args:
        who: the op.
        backend: what the caller asked for.
        kernel: the official function that computes the same.
        queries, keys, others: all tensors of the call.

    Raises:
        BackendError: an explicit choice that cannot be honoured.

    Example:
        >>> from myfla.backends.official import CHUNK_GATED_DELTA_RULE
        >>> choose("op", "auto", CHUNK_GATED_DELTA_RULE, torch.zeros(1, 5, 1, 4), torch.zeros(1, 5, 1, 4))
        'torch'
    """
    device = queries.device.type
    if backend == "torch" or (backend == "auto" and (device != "cuda" or tracing())):
        chosen = "torch"
    elif backend == "auto":
        chosen = "torch" if why_not("auto", kernel, queries, keys, *others) else "fla"
    else:
        check_backend(who, backend)
        problem = None if backend == "naive" else why_not(backend, kernel, queries, keys, *others)
        if problem is not None:
            raise _refusal(who, backend, problem)
        chosen = backend
    if not tracing():
        _tell(who, backend, device, chosen)
    return chosen


def why_not(
    backend: str, kernel: official.Kernel, queries: torch.Tensor, keys: torch.Tensor, *others: Optional[torch.Tensor]
) -> Optional[str]:
    """Why ``compiled`` or ``fla`` cannot (or, for ``auto``, why fla shall not) compute a call; None if nothing speaks
    against it."""
    if backend == "compiled":
        return None if tracing() else compiler_problem(queries.device.type)
    if backend == "auto" and queries.dtype not in (torch.bfloat16, torch.float16):
        return "fla computes float32 in TF32 and has no float64"
    gradients = records(queries, keys, *others)
    return official.problem(kernel, keys.shape[-1], gradients, queries, keys, *others)


def _refusal(who: str, backend: str, problem: str) -> BackendError:
    rule = f"cannot be honoured here: {problem}"
    return BackendError(message(who, "backend", rule, backend, "use backend='auto' or 'torch'"))


def _tell(who: str, backend: str, device: str, chosen: str) -> None:
    """One log line the first time that an op is computed by somebody on a device."""
    key = (who, device, chosen)
    if key not in _told:
        _told.add(key)
        _log.info("%s on %s: computed by backend %s (asked for: %s)", who, device, chosen, backend)
