"""The other operations on a CPU, compared with the gated delta rule at the same shape; KDA also with other
libraries."""

from typing import Callable, Iterator, List, Tuple

import torch

from benchmarks.cases_ops import QUICK, SHAPES, name_shape
from benchmarks.inputs import WORKS, largest_error
from benchmarks.measure import Side, Work, time_in_turn
from benchmarks.peers import OURS
from benchmarks.peers_family import FAMILY, GATED, GOALS, Member
from benchmarks.rows import Options, Row, rows_of

RULE = "gated delta rule"
Shape = Tuple[int, int, int, int]


def run(options: Options) -> Iterator[List[Row]]:
    """Every member at the shapes of the gated delta rule except the largest; ``--only`` selects members."""
    shapes = QUICK[RULE] if options.quick else SHAPES[RULE][:-1]
    for threads in options.threads:
        torch.set_num_threads(threads)
        for name in [name for name in FAMILY if name in options.only] or FAMILY:
            for shape in shapes:
                for work in WORKS:
                    yield _case(name, shape, work, threads, options)


def _case(name: str, shape: Shape, work: str, threads: int, options: Options) -> List[Row]:
    member = FAMILY[name]
    sides = [Side(side, _maker(member, side, shape, work)) for side in member.sides]
    gated = _maker(GATED, OURS, shape, work)
    timings = time_in_turn(
        [*sides, Side(RULE, lambda: _unseen(gated()))], options.rounds, options.patience, "cpu", largest_error
    )
    rows = rows_of(
        timings, [*member.sides, RULE], threads == 1, tokens=shape[0] * shape[1], section="family", op=name,
        shape=name_shape(shape), work=work, dtype="float32", threads=threads,
    )  # fmt: skip
    if shape == SHAPES[RULE][1] and work != "forward" and name in GOALS:
        goals = {**GOALS[name], **({} if name == "KDA" else {RULE: 1.0})}
        rows[0].goal = ", ".join(
            f"{row.ratio:.2f}x the speed of {row.side} (goal: {goals[row.side]:g}x)"
            for row in rows if row.side in goals and row.ratio
        )  # fmt: skip
    return rows


def _maker(member: Member, side: str, shape: Shape, work: str) -> Callable[[], Work]:
    return lambda: WORKS[work](member.sides[side](), member.inputs(*shape))


def _unseen(work: Work) -> Work:
    """The work without its result, because results of different rules cannot be compared."""

    def run() -> None:
        work()

    return run
