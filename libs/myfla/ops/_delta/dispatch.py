"""The choice of the back end for a call, from a registry.

To add a back end, write ``problem(call)``, which returns the reason why it cannot compute a call, and ``run(call)``,
and `register` a `Backend` with both.
"""

from typing import Callable, Container, List, NamedTuple, Optional

from myfla.backends import choice as choices
from myfla.ops._delta.call import Call, Result
from myfla.ops._delta.plans import Run, forget_plans
from myfla.utils.tracing import tracing

__all__ = ["Backend", "register", "select"]

Reason = Callable[[Call], Optional[str]]
"""Returns the reason why a call cannot be computed, or None if it can."""


class Backend(NamedTuple):
    """One implementation of the rules.

    Attributes:
        name: of this back end.
        choice: what a caller asks for by ``backend=``; several back ends may have the same.
        run: computes a call.
        problem: returns why it cannot compute a call; by default it can compute all.
        reserve: returns why ``auto`` does not choose it for a call that it can compute; by default never.
        families: names of the families that it supports; by default all.
        device, form, traced: with ``auto`` and ``torch`` it is only considered for calls on this kind of device, of
            this form, and that are traced (`myfla.utils.tracing`) or not traced; by default for all.
        on_request: it is only used where it is requested by name.
        plan: from a call that it can compute, and whether final states are needed, makes the function that computes all
            calls of this kind, or returns None if it has no such function; by default it has none.
    """

    name: str
    choice: str
    run: Callable[[Call], Result]
    problem: Optional[Reason] = None
    reserve: Optional[Reason] = None
    families: Optional[Container[str]] = None
    device: Optional[str] = None
    form: Optional[str] = None
    traced: Optional[bool] = None
    on_request: bool = False
    plan: Optional[Callable[[Call, bool], Optional[Run]]] = None


_registry: List[Backend] = []


def register(backend: Backend, before: Optional[str] = None) -> None:
    """Add a back end.

    Args:
        backend: its ``name`` must be new.
        before: the name of the back end in front of which it is inserted; by default it is the last.
    """
    names = [one.name for one in _registry]
    if backend.name in names:
        raise ValueError(f"register: backend {backend.name!r} is already there")
    _registry.insert(len(names) if before is None else names.index(before), backend)
    forget_plans()


def select(call: Call, choice: str) -> Backend:
    """The first back end that has this choice and can compute the call.

    Args:
        call: the call of the layer.
        choice: as the caller gave it.

    Raises:
        BackendError: there is no such choice, or none of its back ends can compute this call here; the message says
            why.
    """
    reasons, one_of_all, x = [], choice == "auto" or choice == "torch", call.x[0]
    device, traced = x.device.type, tracing(x)
    if not one_of_all:
        choices.check_backend(call.who, choice)
    for backend in _registry:
        if choice == "auto":
            if backend.on_request:
                continue
        elif backend.choice != choice:
            continue
        if one_of_all and (
            backend.device not in (None, device)
            or backend.form not in (None, call.form)
            or backend.traced not in (None, traced)
        ):
            continue
        reason = None
        if backend.families is not None and call.family.name not in backend.families:
            reason = f"it does not support {call.family.name}"
        elif backend.problem is not None:
            reason = backend.problem(call)
        if reason is None and choice == "auto" and backend.reserve is not None:
            reason = backend.reserve(call)
        if reason is None:
            if not traced:
                choices.tell(call.who, choice, device, backend.choice)
            return backend
        reasons.append(reason)
    raise choices.refusal(call.who, choice, reasons[0] if reasons else "there is no back end for such a call")
