"""Smartwatch recordings of shoulder exercises, from the seglearn package, as a table that ``data=table`` reads.

``python tools/watch_table.py OUT.parquet`` needs seglearn (1.2.5), whose file it reads and whose code it does not run:
140 recordings at 50 Hz, 947 to 2618 steps, accelerometer and gyroscope, 7 exercises, 10 people (arXiv 1802.01489).
"""

import argparse
import hashlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"
RATE = 50.0  # steps a second


def watch_file() -> Path:
    """Where seglearn has the recordings.

    Raises:
        SystemExit: it is not installed.
    """
    found = find_spec("seglearn")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("watch_table: the package seglearn, which holds the data, must be installed")
    return Path(found.submodule_search_locations[0]) / "data" / "watch_dataset.npy"


def watch_table(path: Path) -> pa.Table:
    """The recordings, a row for each step: recording, seconds, subject, exercise, ax to wz.

    Args:
        path: of ``watch_dataset.npy``. It is a pickle, which may run code, so only the file that is known is read.

    Raises:
        SystemExit: it is another file.
    """
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != SHA256:
        raise SystemExit(f"watch_table: {path} must be the file of seglearn 1.2.5, with SHA-256 {SHA256}; got {found}")
    data = np.load(path, allow_pickle=True).item()
    steps = [len(x) for x in data["X"]]
    columns = {
        "recording": np.repeat(np.arange(len(steps)), steps),
        "seconds": np.concatenate([np.arange(n) / RATE for n in steps]),
        "subject": np.repeat(data["subject"], steps),
        "exercise": np.repeat(np.array(data["y_labels"])[data["y"]], steps),
        **dict(zip(data["X_labels"], np.concatenate(data["X"]).T)),
    }
    return pa.table({name: pa.array(values) for name, values in columns.items()})


def main() -> None:
    """Write what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    pq.write_table(watch_table(watch_file()), parser.parse_args().out)


if __name__ == "__main__":
    main()
