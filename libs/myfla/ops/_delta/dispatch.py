"""Who computes a call: one choice over a registry of back ends.

To add one: write ``problem(call)``, which says why it cannot take a call, and ``run(call)``, and `register` a
`Backend` of them.
"""

from typing import Callable, Container, List, NamedTuple, Optional

from myfla.backends import choice as choices
from myfla.ops._delta.call import Call, Result
from myfla.ops._delta.steps import Step, forget_steps
from myfla.utils.tracing import tracing

__all__ = ["Backend", "register", "select"]

Reason = Callable[[Call], Optional[str]]
"""Why not, or None where there is no reason against it."""


class Backend(NamedTuple):
    """One implementation of the rules.

    Attributes:
        name: its own.
        choice: what a caller asks for by ``backend=``; several may answer to one.
        run: computes a call.
        problem: why it cannot compute a call; by default nothing.
        reserve: why ``auto`` shall not choose it though it could; by default nothing.
        families: names of the families that it has a form of; by default all.
        device, form, recorded: where several could compute a call, it is asked about calls on this kind of device, of
            this form, and that somebody records (`myfla.utils.tracing`) or that nobody does; by default about all.
        on_request: it is only taken where it is asked for by name.
        plan: how it computes all decoding steps like a call that it can compute, with the final states or without; None
            where it has no short way for them, by default for none.
    """

    name: str
    choice: str
    run: Callable[[Call], Result]
    problem: Optional[Reason] = None
    reserve: Optional[Reason] = None
    families: Optional[Container[str]] = None
    device: Optional[str] = None
    form: Optional[str] = None
    recorded: Optional[bool] = None
    on_request: bool = False
    plan: Optional[Callable[[Call, bool], Optional[Step]]] = None


_registry: List[Backend] = []


def register(backend: Backend, before: Optional[str] = None) -> None:
    """Add a back end.

    Args:
        backend: its ``name`` must be new.
        before: the name of the one that it goes before; by default it is the last to be asked.
    """
    names = [one.name for one in _registry]
    if backend.name in names:
        raise ValueError(f"register: backend {backend.name!r} is already there")
    _registry.insert(len(names) if before is None else names.index(before), backend)
    forget_steps()


def select(call: Call, choice: str) -> Backend:
    """The first back end that answers to a choice and can compute a call.

    Args:
        call: what is asked for.
        choice: as the caller gave it.

    Raises:
        BackendError: no such choice, or none that answers to it can compute this here; the message says why.
    """
    reasons, one_of_all, x = [], choice == "auto" or choice == "torch", call.x[0]
    device, recorded = x.device.type, tracing(x)
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
            or backend.recorded not in (None, recorded)
        ):
            continue
        reason = None
        if backend.families is not None and call.family.name not in backend.families:
            reason = f"it has no form of {call.family.name}"
        elif backend.problem is not None:
            reason = backend.problem(call)
        if reason is None and choice == "auto" and backend.reserve is not None:
            reason = backend.reserve(call)
        if reason is None:
            if not recorded:
                choices.tell(call.who, choice, device, backend.choice)
            return backend
        reasons.append(reason)
    raise choices.refusal(call.who, choice, reasons[0] if reasons else "nothing here answers to it")
