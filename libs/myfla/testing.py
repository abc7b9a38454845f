"""What tests of these layers share: closeness by mean *and* by largest element, and cases without a test runner.

A test module that uses `cases` and `run_as_script` runs under pytest and as a plain script; neither function
imports pytest.
"""

import inspect
import itertools
import sys
import time
import traceback
from typing import Any, Callable, Dict, Iterable, List, Optional

import torch

__all__ = ["assert_close", "cases", "expand_cases", "max_error", "raises", "rms_error", "run_as_script"]


def rms_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Relative Frobenius norm of a difference, ``||got - want|| / ||want||``.

    Args:
        got, want: tensors of the same shape.

    Returns:
        The norm, computed in float64.

    Example:
        >>> rms_error(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0]))
        0.1
    """
    got, want = got.detach().double().cpu(), want.detach().double().cpu()
    scale = want.norm().item()
    return (got - want).norm().item() / scale if scale else (got - want).norm().item()


def max_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Largest difference relative to the largest magnitude, ``max|got - want| / max|want|``.

    Args:
        got, want: tensors of the same shape.

    Returns:
        The ratio, computed in float64; 0 for empty tensors.

    Example:
        >>> max_error(torch.tensor([3.0, 4.5]), torch.tensor([3.0, 4.0]))
        0.125
    """
    if want.numel() == 0:
        return 0.0
    got, want = got.detach().double().cpu(), want.detach().double().cpu()
    scale = want.abs().max().item()
    worst = (got - want).abs().max().item()
    return worst / scale if scale else worst


def assert_close(
    got: torch.Tensor, want: torch.Tensor, rms: float, largest: Optional[float] = None, name: str = ""
) -> None:
    """Raise `AssertionError` unless two tensors agree by norm and by largest element.

    A mean alone hides one wild element; a maximum alone hides a small error everywhere.

    Args:
        got, want: tensors of one shape, any floating type and device; ``want`` is the truth.
        rms: bound on `rms_error`.
        largest: bound on `max_error`; ten times ``rms`` if not given.
        name: what is compared, for the message.

    Example:
        >>> assert_close(torch.ones(3), torch.ones(3), rms=1e-6)
    """
    largest = 10 * rms if largest is None else largest
    label = name or "tensor"
    if got is None or want is None:
        raise AssertionError(f"{label}: one side is None")
    if got.shape != want.shape:
        raise AssertionError(f"{label}: shape {tuple(got.shape)} is not {tuple(want.shape)}")
    if want.numel() == 0:
        return
    if not torch.isfinite(got).all():
        raise AssertionError(f"{label}: {int((~torch.isfinite(got)).sum())} of {got.numel()} elements are not finite")
    r, m = rms_error(got, want), max_error(got, want)
    if not (r <= rms and m <= largest):
        raise AssertionError(f"{label}: rms error {r:.2e} (bound {rms:.0e}), largest {m:.2e} (bound {largest:.0e})")


def cases(**axes: Iterable[Any]) -> Callable:
    """Run a test once for every combination of the given values.

    ``@cases(T=[1, 5], neg=[True, False])`` gives four cases. It can be applied several times, as
    ``pytest.mark.parametrize``. Pytest gets the cases through ``tests/conftest.py``, `run_as_script` directly.

    Args:
        axes: the values of each argument of the test.

    Returns:
        A decorator.

    Example:
        >>> @cases(T=[1, 5])
        ... def test_length_is_kept(T):
        ...     assert len(torch.zeros(T)) == T
        >>> expand_cases(test_length_is_kept)
        [{'T': 1}, {'T': 5}]
    """

    def mark(test: Callable) -> Callable:
        listed = {name: list(values) for name, values in axes.items()}
        setattr(test, "cases", {**listed, **getattr(test, "cases", {})})
        return test

    return mark


def expand_cases(test: Callable) -> List[Dict[str, Any]]:
    """The keyword arguments of each case of a test.

    Args:
        test: a test, decorated by `cases` or not.

    Returns:
        One dict for each case; one empty dict for a test without `cases`.

    Example:
        >>> expand_cases(cases(a=[1, 2], b=["x"])(lambda a, b: None))
        [{'a': 1, 'b': 'x'}, {'a': 2, 'b': 'x'}]
    """
    axes = getattr(test, "cases", {})
    return [dict(zip(axes, values)) for values in itertools.product(*axes.values())]


class raises:
    """A context in which ``kind`` must be raised, with all ``parts`` in the message.

    Example:
        >>> with raises(ValueError, "field", "rule"):
        ...     raise ValueError("who: field rule")
    """

    def __init__(self, kind: type, *parts: str) -> None:
        self.kind, self.parts = kind, parts

    def __enter__(self) -> "raises":
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        if kind is None:
            raise AssertionError(f"no {self.kind.__name__} was raised")
        if not issubclass(kind, self.kind):
            return False
        missing = [part for part in self.parts if part not in str(error)]
        if missing:
            raise AssertionError(f"message {str(error)!r} does not name {missing}")
        return True


def run_as_script(namespace: Dict[str, Any]) -> None:
    """Run every ``test_*`` function of a module, all cases, and exit.

    It prints each failure, then ``N passed, M failed``; the exit code is 1 if a test failed or if there are no tests.

    Args:
        namespace: the module's ``globals()``.

    Example (the end of a test module)::

        if __name__ == "__main__":
            run_as_script(globals())

    Example:
        >>> run_as_script({})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        SystemExit: 1
    """
    torch.set_num_threads(1)  # many small tensors: threads would mostly wait for each other
    passed = failed = 0
    start = time.perf_counter()
    for name, test in list(namespace.items()):
        if not name.startswith("test_") or not inspect.isfunction(test):
            continue
        for arguments in expand_cases(test):
            torch.manual_seed(0)
            try:
                test(**arguments)
                passed += 1
            except Exception:
                failed += 1
                print(f"FAILED {name} {arguments}\n{traceback.format_exc()}")
    print(f"Python {sys.version.split()[0]}, torch {torch.__version__}, {time.perf_counter() - start:.1f} s")
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed or not passed else 0)
