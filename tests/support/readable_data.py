"""Files without a digest that the application reads: data of others, and JSON and YAML for people.

``write(folder, seed)`` gives the path, ``read(path)`` something comparable; of data, a list with one entry for each
line or row, so that what stood before a cut can be compared.
"""

import json

import numpy as np
import pytest
import torch

from app.data.table import load as load_table
from app.data.text import load as load_text
from app.data.ts import read_ts
from app.encoding.files import write_part
from app.run_folder import read_json, write_json
from app_runs import compose_app
from cfg.data import TableDataConfig, TextDataConfig
from encoders.training.encode import Encoded
from encoders.training.run_config import read_config, write_config


def _draw(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def write_ts(folder, seed):
    lines = ["@problemName Tiny", "@timeStamps false", "@dimensions 2", "@classLabel true upward downward", "@data"]
    for i in range(12):
        channels = (",".join(f"{x:.4f}" for x in row) for row in _draw(seed + i, 2, 3 + i % 3).tolist())
        lines.append(":".join([*channels, ("upward", "downward")[i % 2]]))
    (folder / "x.ts").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "x.ts"


def read_sequences(path):
    found = read_ts(path).data
    return [(x.tolist(), int(y)) for x, y in zip(found.sequences, found.targets)]


def _rows(seed):
    return [{"id": f"s{i // 4}", "a": float(x), "b": float(y), "kind": ("calm", "busy")[i // 4 % 2]}
            for i, (x, y) in enumerate(_draw(seed, 40, 2).tolist())]


def write_csv(folder, seed):
    pytest.importorskip("pyarrow")
    rows = _rows(seed)
    lines = [",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]
    (folder / "x.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "x.csv"


def write_parquet(folder, seed):
    pq, pa = pytest.importorskip("pyarrow.parquet"), pytest.importorskip("pyarrow")
    pq.write_table(pa.Table.from_pylist(_rows(seed)), str(folder / "x.parquet"))
    return folder / "x.parquet"


def read_table(path):
    found = load_table(TableDataConfig(train_path=str(path), sequence="id", features=["a", "b"], label="kind"))
    return [(x.tolist(), found.classes[y]) for x, y in zip(found.train.sequences, found.train.targets)]


def encoded(seed, sequences=6):
    return Encoded(2, _draw(seed, sequences, 5), torch.arange(sequences) + 1, [f"n{i}" for i in range(sequences)])


def write_encoded(folder, seed):
    pytest.importorskip("pyarrow")
    write_part(folder / "part-00000000.parquet", encoded(seed), False)
    return folder / "part-00000000.parquet"


def read_encoded(path):
    """As another run's data, the one way in which this package reads it."""
    found = load_table(TableDataConfig(train_path=str(path), features=["embedding"])).train
    return [x.tolist() for x in found.sequences]


def write_text(folder, seed):
    (folder / "x.txt").write_bytes(np.random.default_rng(seed).bytes(200))
    return folder / "x.txt"


def read_text(path):
    found = load_text(TextDataConfig(train_path=str(path), window=8)).train
    return found.sequences.values.tolist()


def write_run_config(folder, seed):
    write_config(compose_app([f"seed={seed}"]), folder / "config.yaml")
    return folder / "config.yaml"


def read_run_config(path):
    return repr(read_config(path.parent))


def write_facts(folder, seed):
    write_json({"seed": seed, "val_loss": 0.5, "overrides": ["a=1"], "more": {"deep": [1, None, "x"]}},
               folder / "metrics.json")
    return folder / "metrics.json"


def read_facts(path):
    return json.dumps(read_json(path), sort_keys=True)
