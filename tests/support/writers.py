"""Everything that is written to disk: contents by number, how each is written, and which of them a reader finds."""

import dataclasses
from pathlib import Path
from typing import Any, Callable, List

import pytest
import torch

import readable_data as data
from app.encoding.files import KIND as PART
from app.encoding.files import write_part
from app.page.run_page import REPORT, write_run_page
from app.run_folder import read_json, whole_file, write_json
from caches import filled, same
from encoders import load_encoder
from encoders.training.loop.checkpoint_io import SafeCheckpointIO
from myfla.models import load_model
from myfla.models.sealed_file import read_sealed
from myfla.models.utils import Cache
from small_encoders import small
from small_models import small_model


@dataclasses.dataclass
class Writer:
    """One thing that is saved.

    Attributes:
        contents: two different ones; large enough for a write to take a while.
        save: ``save(content, folder)``.
        load: ``load(folder)``, what stands there.
        equal: whether two contents are the same.
    """

    contents: List[Any]
    save: Callable[[Any, Path], Any]
    load: Callable[[Path], Any]
    equal: Callable[[Any, Any], bool]

    def found(self, folder):
        """The number of the content that stands in a folder."""
        loaded = self.load(folder)
        return [self.equal(loaded, content) for content in self.contents].index(True)


def _same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _same_caches(a, b):
    try:
        return same(a, b)
    except AssertionError:
        return False


def _write_lines(lines, folder):
    with whole_file(folder / "x.csv") as file:
        for line in lines:
            file.write(line)


def _embeddings(suffix):
    """A part of job=encode."""
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    name = f"part-00000000.{suffix}"

    def load(folder):
        if suffix == "parquet":
            return data.read_encoded(folder / name)
        return read_sealed(folder / name, PART, ValueError)[0]["embeddings"].tolist()

    contents = [data.encoded(seed, 2000) for seed in (1, 2)]
    return Writer(contents, lambda part, to: write_part(to / name, part, False), load,
                  lambda found, part: torch.tensor(found).flatten().equal(part.embeddings.flatten()))


def _results(kind):
    """What a run writes for people: its tables, its page, its facts."""
    about = {"encoder": "x", "data": "y", "encoder_parameters": 1}
    contents = [{**about, "seed": seed, "numbers": [str(seed)] * 20000} for seed in (1, 2)]
    if kind == "facts":
        return Writer(contents, lambda facts, to: write_json(facts, to / "metrics.json"),
                      lambda at: read_json(at / "metrics.json"), lambda a, b: a == b)
    if kind == "table":
        lines = [[f"{seed},{i}\n" for i in range(20000)] for seed in (1, 2)]
        return Writer(lines, _write_lines, lambda at: (at / "x.csv").read_text().splitlines(keepends=True),
                      lambda a, b: a == b)
    texts = ["\n".join(facts["numbers"]) for facts in contents]
    return Writer(texts, lambda text, to: write_run_page(to, contents[0], text, []),
                  lambda at: (at / REPORT).read_text(encoding="utf-8"),
                  lambda page, text: page.endswith("</html>\n") and text in page)


def make(kind):
    """The writer of that kind."""
    if kind.startswith("embeddings"):
        return _embeddings(kind.split()[-1])
    if kind in ("facts", "table", "page"):
        return _results(kind)
    if kind == "encoder":
        contents = [small("gated_deltanet", torch.float32, seed=seed, hidden_size=64) for seed in (1, 2)]
        return Writer(contents, lambda encoder, to: encoder.save(to), load_encoder, _same_weights)
    if kind == "cache":
        contents = [filled(600, seed=seed) for seed in (1, 2)]
        return Writer(contents, lambda cache, to: cache.save(to / "c"), lambda at: Cache.load(at / "c"), _same_caches)
    if kind == "checkpoint":
        contents = [{"w": torch.full((300, 300), float(seed)), "epoch": seed} for seed in (1, 2)]
        io = SafeCheckpointIO()
        return Writer(contents, lambda tree, to: io.save_checkpoint(tree, to / "last.ckpt"),
                      lambda at: io.load_checkpoint(at / "last.ckpt"),
                      lambda a, b: a["epoch"] == b["epoch"] and torch.equal(a["w"], b["w"]))
    models = [small_model("gated_deltanet", seed=seed) for seed in (1, 2)]
    return Writer(models, lambda model, to: model.save_pretrained(to), load_model, _same_weights)


KINDS = ("encoder", "cache", "checkpoint", "model folder", "embeddings as safetensors", "embeddings as parquet",
         "facts", "table", "page")
