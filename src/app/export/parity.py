"""Compare what a written file computes with PyTorch."""

import copy
from typing import Any, Callable, Dict, List, Sequence, Tuple

import torch

from app.errors import RunError
from app.export.modules import EncoderStep, WholeEncoder

__all__ = ["compare_step", "compare_whole", "require"]

Runner = Callable[[Sequence[torch.Tensor]], List[torch.Tensor]]


def compare_step(module: EncoderStep, run: Runner, batch: int, steps: int) -> float:
    """The largest difference over a stream in which both sides keep their own states."""
    mine = theirs = module.first_states(batch)
    worst = 0.0
    for _ in range(steps):
        x = module.sample(batch, 1)
        want, got = module(x, *mine), run((x, *theirs))
        worst = _larger(worst, _difference(got, want))
        mine, theirs = want[1:], got[1:]
    return worst


def compare_whole(module: WholeEncoder, run: Runner, sizes: Sequence[Tuple[int, int]]) -> float:
    """The largest difference over batches of some sizes, ``(sequences, tokens)``.

    Of three random batches of each size, the one counts that PyTorch computes most exactly, compared with float64: if
    almost nothing of a single step is left after a stem, a norm can enlarge rounding errors by a factor of 300.
    """
    exact, worst = copy.deepcopy(module).double(), 0.0
    for batch, length in sizes:
        drawn = (module.sample(batch, length) for _ in range(3))
        x = min(drawn, key=lambda x: _difference(module(x), exact(x.double() if x.is_floating_point() else x)))
        worst = _larger(worst, _difference(run((x,)), module(x)))
    return worst


def require(figures: Dict[str, Any], tolerance: float) -> None:
    """Refuse files whose results differ.

    Raises:
        RunError: a difference above the tolerance, or not a number.
    """
    for name, figure in figures.items():
        if not figure <= tolerance:
            raise RunError(f"{name} must equal PyTorch within job.tolerance={tolerance:g}; got a difference of "
                           f"{figure:.3g}; do not use the file")


def _difference(got: Sequence[torch.Tensor], want: Sequence[torch.Tensor]) -> float:
    worst = 0.0
    for mine, theirs in zip(got, want):
        if mine.shape != theirs.shape:
            return float("nan")
        largest = max(1.0, float(theirs.abs().max()))
        worst = _larger(worst, float((mine.double() - theirs.double()).abs().max()) / largest)
    return worst


def _larger(worst: float, gap: float) -> float:
    """`max`, but NaN if any value is NaN."""
    return gap if gap != gap or gap > worst else worst
