"""The names of the backends, the rule of ``auto``, and the errors. A new backend is a row of `TABLE`."""

import logging
from typing import Any, Callable, Dict, NamedTuple, Optional, Set, Tuple

import torch

from myfla.backends import official
from myfla.backends.compiler import compiler_problem
from myfla.utils.autograd import records
from myfla.utils.errors import BackendError, message, nearest
from myfla.utils.native import missing_native, native, why_not_native
from myfla.utils.tracing import tracing

__all__ = ["AUTO", "AUTO_RULE", "BACKENDS", "TABLE", "Backend", "BackendError", "Call", "check_backend", "choose",
           "refusal", "tell", "why_not"]  # fmt: skip


class Call(NamedTuple):
    """The call for which a backend is chosen."""

    kernel: official.Kernel  # the official function that computes the same
    queries: torch.Tensor  # [B, T, H, K]
    keys: torch.Tensor  # [B, T, H, K]
    others: Tuple[Optional[torch.Tensor], ...]  # all other tensors of the call


class Backend(NamedTuple):
    """A backend. Every function returns the reason against it, or None."""

    missing: Callable[[], Optional[str]]  # in this process, for any call
    cannot: Callable[[Call], Optional[str]]  # compute a call that names it
    declines: Callable[[Call], Optional[str]]  # a call that leaves the choice to ``auto``


def _nothing(*_: Any) -> Optional[str]:
    return None


def _never(_: Call) -> Optional[str]:
    return "auto never chooses it"


def _compiler_missing() -> Optional[str]:
    return None if hasattr(torch, "compile") else compiler_problem("cpu")


def _compiler_fails(call: Call) -> Optional[str]:
    return None if tracing() else compiler_problem(call.queries.device.type)


def _official_missing() -> Optional[str]:
    return official.import_problem()


def _official_cannot(call: Call) -> Optional[str]:
    gradients = records(call.queries, call.keys, *call.others)
    return official.problem(call.kernel, call.keys.shape[-1], gradients, call.queries, call.keys, *call.others)


def _official_declines(call: Call) -> Optional[str]:
    if call.queries.device.type != "cuda":
        return "its kernels run on CUDA devices only"
    if call.queries.dtype not in (torch.bfloat16, torch.float16):
        return "fla computes float32 in TF32 and has no float64"
    return _official_cannot(call)


def _native_cannot(call: Call) -> Optional[str]:
    return why_not_native(call.queries, call.keys, *call.others)


def _native_declines(call: Call) -> Optional[str]:
    return None if native(call.queries, call.keys, *call.others) is not None else _native_cannot(call)


TABLE: Dict[str, Backend] = {
    "naive": Backend(_nothing, _nothing, _never),
    "torch": Backend(_nothing, _nothing, _nothing),
    "native": Backend(missing_native, _native_cannot, _native_declines),
    "compiled": Backend(_compiler_missing, _compiler_fails, _never),
    "fla": Backend(_official_missing, _official_cannot, _official_declines),
}
AUTO = ("fla", "native", "torch")
"""The backends that ``auto`` tries in this order; the last one computes every call."""
BACKENDS = ("auto", *TABLE)

AUTO_RULE = (
    "fla for CUDA tensors in bfloat16 or float16, at every length, where fla can be imported and its kernels are "
    "correct for the call (forward, or gradients too); native for CPU tensors in float32, bfloat16 or float16 where "
    "myfla-native is installed; torch for everything else. naive and compiled are never chosen"
)

_log = logging.getLogger(__name__)
_told: Set[Tuple[str, str, str]] = set()


def check_backend(who: str, backend: Any) -> str:
    """Check that a backend exists and can be used in this process.

    Args:
        who: the caller, for messages.
        backend: a name.

    Returns:
        The name.

    Raises:
        BackendError: there is no such backend, ``compiled`` has no compiler, or ``fla`` or ``native`` cannot be
            imported.

    Example:
        >>> check_backend("layer", "torch")
        'torch'
    """
    if not isinstance(backend, str) or backend not in BACKENDS:
        hint = nearest(str(backend), BACKENDS)
        raise BackendError(message(who, "backend", f"must be one of {', '.join(BACKENDS)}", backend, hint))
    problem = None if backend == "auto" else TABLE[backend].missing()
    if problem is not None:
        raise refusal(who, backend, problem)
    return backend


def choose(
    who: str, backend: str, kernel: official.Kernel, queries: torch.Tensor, keys: torch.Tensor,
    *others: Optional[torch.Tensor],
) -> str:
    """Choose the backend that computes a call.

    Args:
        who: the operation, for messages.
        backend: the argument of the caller.
        kernel: the official function that computes the same.
        queries, keys, others: all tensors of the call.

    Returns:
        A name of `TABLE`.

    Raises:
        BackendError: the caller named a backend that cannot compute this call.

    Example:
        >>> from myfla.backends.official import CHUNK_GATED_DELTA_RULE
        >>> x = torch.zeros(1, 5, 1, 4, dtype=torch.float64)
        >>> choose("op", "auto", CHUNK_GATED_DELTA_RULE, x, x)
        'torch'
    """
    call, chosen = Call(kernel, queries, keys, others), backend
    if backend == "auto":
        chosen = "torch" if tracing() else next(name for name in AUTO if TABLE[name].declines(call) is None)
    elif backend != "torch":
        check_backend(who, backend)
        problem = TABLE[backend].cannot(call)
        if problem is not None:
            raise refusal(who, backend, problem)
    if not tracing():
        tell(who, backend, queries.device.type, chosen)
    return chosen


def why_not(
    backend: str, kernel: official.Kernel, queries: torch.Tensor, keys: torch.Tensor, *others: Optional[torch.Tensor]
) -> Optional[str]:
    """The reason why a backend cannot compute a call, or why ``auto`` does not choose fla; None if there is none."""
    call = Call(kernel, queries, keys, others)
    return TABLE["fla"].declines(call) if backend == "auto" else TABLE[backend].cannot(call)


def refusal(who: str, backend: str, problem: str) -> BackendError:
    """The error for a named backend that cannot be used."""
    rule = f"cannot be used here: {problem}"
    return BackendError(message(who, "backend", rule, backend, "use backend='auto' or 'torch'"))


def tell(who: str, backend: str, device: str, chosen: str) -> None:
    """Write one log line when a backend computes an operation on a device for the first time."""
    key = (who, device, chosen)
    if key not in _told:
        _told.add(key)
        _log.info("%s on %s: computed by backend %s (asked for: %s)", who, device, chosen, backend)
