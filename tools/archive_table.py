"""Eight public data sets, read from the sktime package, with default settings: accuracy compared with MiniRocket's.

``python tools/archive_table.py OUT [--encoders NAME ...] [--seeds N ...] [--sets NAME ...] [-- OVERRIDE ...]`` runs
``python -m app`` for each and writes ``OUT/table.md``. Needs sktime with numba (``MiniRocketMultivariateVariable``
takes uneven lengths); nothing is chosen by the test sets.
"""

import argparse
import json
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np

SETS = ["BasicMotions", "GunPoint", "ItalyPowerDemand", "ArrowHead", "OSULeaf", "JapaneseVowels", "ACSF1", "PLAID"]
Row = Dict[str, Any]


def folder_of(name: str) -> Path:
    """The folder of a data set in sktime."""
    found = find_spec("sktime")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("archive_table: the package sktime, which holds the data, must be installed")
    return Path(found.submodule_search_locations[0]) / "datasets" / "data" / name


def read_part(name: str, part: str) -> Tuple[List[np.ndarray], List[str]]:
    """Sequences ``[channels, steps]`` and labels of ``TRAIN`` or ``TEST``."""
    lines = (folder_of(name) / f"{name}_{part}.ts").read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip().lower() == "@data") + 1
    rows = [line.strip().split(":") for line in lines[start:] if line.strip()]
    values = [np.array([[float(value) for value in channel.split(",")] for channel in row[:-1]]) for row in rows]
    return values, [row[-1] for row in rows]


def minirocket(name: str, seed: int) -> Row:
    """MiniRocket with a ridge classifier, its strength chosen by cross-validation, as its authors recommend."""
    import pandas
    from sklearn.linear_model import RidgeClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sktime.transformations.panel.rocket import MiniRocketMultivariateVariable

    (x, y), (x_test, y_test) = read_part(name, "TRAIN"), read_part(name, "TEST")
    nested = [pandas.DataFrame([[pandas.Series(channel) for channel in row] for row in part]) for part in (x, x_test)]
    start = time.perf_counter()
    transform = MiniRocketMultivariateVariable(random_state=seed, pad_value_short_series=0.0).fit(nested[0])
    ridge = make_pipeline(StandardScaler(with_mean=False), RidgeClassifierCV(alphas=np.logspace(-3, 3, 10)))
    ridge.fit(np.asarray(transform.transform(nested[0])), y)
    seconds = time.perf_counter() - start
    return {"accuracy": float(ridge.score(np.asarray(transform.transform(nested[1])), y_test)), "seconds": seconds}


def ours(name: str, encoder: str, seed: int, out: Path, overrides: List[str]) -> Row:
    """Run ``python -m app`` with its defaults, in a separate process."""
    run, files = out / f"{encoder}-{name}-{seed}", folder_of(name)
    paths = [f"data.{part}_path={files / f'{name}_{part.upper()}.ts'}" for part in ("train", "test")]
    subprocess.run([sys.executable, "-m", "app", "data=ts", *paths, f"encoder={encoder}", f"seed={seed}",
                    f"hydra.run.dir={run}", "trainer.progress=false", *overrides], check=True)
    figures = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    return {"accuracy": figures["test_accuracy"], "seconds": figures["fit_seconds"]}


def table(found: Dict[str, Dict[str, List[Row]]]) -> str:
    """Markdown: a row for each set, the mean over seeds, seconds of one training in parentheses."""
    names = list(next(iter(found.values())))
    lines = ["| | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    means: Dict[str, List[float]] = {name: [] for name in names}
    for data, row in found.items():
        cells = []
        for name in names:
            means[name].append(100 * float(np.mean([one["accuracy"] for one in row[name]])))
            cells.append(f"{means[name][-1]:.1f} ({np.mean([one['seconds'] for one in row[name]]):.0f} s)")
        lines.append(f"| {data} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "| mean | " + " | ".join(f"{np.mean(means[name]):.1f}" for name in names) + " |", ""])


def main() -> None:
    """Run the data sets of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sets", nargs="+", default=SETS, choices=SETS)
    parser.add_argument("--encoders", nargs="+", default=["gated_deltanet", "gru", "lstm"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    given = sys.argv[1:]
    cut = given.index("--") if "--" in given else len(given)
    asked, overrides = parser.parse_args(given[:cut]), given[cut + 1 :]
    asked.out.mkdir(parents=True, exist_ok=True)
    found: Dict[str, Dict[str, List[Row]]] = {}
    for name in asked.sets:
        found[name] = {encoder: [ours(name, encoder, seed, asked.out, overrides) for seed in asked.seeds]
                       for encoder in asked.encoders}
        found[name]["MiniRocket"] = [minirocket(name, seed) for seed in asked.seeds]
        (asked.out / "table.md").write_text(table(found), encoding="utf-8")
        print(table(found), flush=True)


if __name__ == "__main__":
    main()
