"""Who computes a call: one choice over a registry of back ends.

To add one: write ``problem(call)``, which says why it cannot take a call, and ``run(call)``, and `register` a
`Backend` of them.
"""

from typing import Callable, Container, List, NamedTuple, Optional

from myfla.backends import choice as choices
from myfla.ops._delta.call import Call, Result
from myfla.utils.tracing import tracing

__all__ = ["Backend", "on_request", "register", "run", "select"]

Reason = Callable[[Call], Optional[str]]
"""Why not, or None where there is no reason against it."""


def on_request(call: Call) -> Optional[str]:
    """The reserve of a back end that ``auto`` never chooses."""
    return "it is only taken where it is asked for"


class Backend(NamedTuple):
    """One implementation of the rules.

    Attributes:
        name: its own.
        choice: what a caller asks for by ``backend=``; several may answer to one.
        run: computes a call.
        problem: why it cannot compute a call.
        reserve: why ``auto`` shall not choose it though it could; by default nothing.
        families: names of the families that it has a form of; by default all.
        takes_plain: whether it may be the one for a `Call` that is ``plain``; of the others none is asked.
    """

    name: str
    choice: str
    run: Callable[[Call], Result]
    problem: Reason
    reserve: Optional[Reason] = None
    families: Optional[Container[str]] = None
    takes_plain: bool = False

    def refuses(self, call: Call) -> Optional[str]:
        """Why it cannot compute a call, or None."""
        if self.families is not None and call.family.name not in self.families:
            return f"it has no form of {call.family.name}"
        return self.problem(call)


_registry: List[Backend] = []
_of_plain: List[Backend] = []
"""Those of a plain decoding step, which would take as long over the others as over its arithmetic."""


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
    _of_plain[:] = [one for one in _registry if one.takes_plain]


def select(call: Call, choice: str) -> Backend:
    """The first back end that answers to a choice and can compute a call.

    Args:
        call: what is asked for.
        choice: as the caller gave it.

    Raises:
        BackendError: no such choice, or none that answers to it can compute this here; the message says why.
    """
    asked, reasons = _registry, []
    if choice not in ("auto", "torch"):
        choices.check_backend(call.who, choice)
    elif call.plain:
        asked = _of_plain
    for backend in asked:
        if choice == "auto":
            reason = None if backend.reserve is None else backend.reserve(call)
        elif backend.choice != choice:
            continue
        else:
            reason = None
        if reason is None:
            reason = backend.refuses(call)
        if reason is None:
            if call.plain or not tracing():
                choices.tell(call.who, choice, call.x[0].device.type, backend.choice)
            return backend
        reasons.append(reason)
    raise choices.refusal(call.who, choice, reasons[0] if reasons else "nothing here answers to it")


def run(call: Call, choice: str) -> Result:
    """Compute a call."""
    return select(call, choice).run(call)
