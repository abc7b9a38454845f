"""Time and peak memory against length, in double logarithmic scale; needs matplotlib."""

from pathlib import Path
from typing import List, Sequence

from benchmarks.peers import optional
from benchmarks.rows import Row


def draw_scaling(rows: Sequence[Row], folder: Path) -> List[Path]:
    """One picture for each op, ``scaling_<op>.png``: time and memory, forward and forward + backward.

    Raises:
        Missing: matplotlib cannot be imported.
    """
    optional("matplotlib").use("Agg")
    pyplot = optional("matplotlib.pyplot")
    paths = []
    for op in dict.fromkeys(row.op for row in rows if row.section == "scaling"):
        own = [row for row in rows if row.section == "scaling" and row.op == op and row.seconds]
        works = list(dict.fromkeys(row.work for row in own))
        figure, axes = pyplot.subplots(2, len(works), figsize=(5 * len(works), 7), squeeze=False, sharex=True)
        for column, work in enumerate(works):
            for side in dict.fromkeys(row.side for row in own if row.work == work):
                line = [row for row in own if row.work == work and row.side == side]
                lengths = [int(row.shape.split(" x ")[1]) for row in line]
                axes[0][column].plot(lengths, [row.seconds for row in line], "o-", label=side)
                peaks = [(t, row.peak_bytes / 1e6) for t, row in zip(lengths, line) if row.peak_bytes]
                if peaks:
                    axes[1][column].plot(*zip(*peaks), "o-", label=side)
            axes[0][column].set_title(f"{op}, {work}")
            axes[1][column].set_xlabel("tokens")
            for line, label in enumerate(("seconds", "peak MB")):
                axes[line][column].set(xscale="log", yscale="log", ylabel=label)
                axes[line][column].grid(True, which="major", alpha=0.3)
            axes[0][column].legend()
        figure.tight_layout()
        paths.append(folder / f"scaling_{op.replace(' ', '_').lower()}.png")
        figure.savefig(str(paths[-1]), dpi=110)
        pyplot.close(figure)
    return paths
