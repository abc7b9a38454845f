"""What is written to disk here: contents by number, how each is written, and which of them a reader finds."""

import dataclasses
from pathlib import Path
from typing import Any, Callable, List

import torch

from app.training.checkpoint_io import SafeCheckpointIO
from caches import filled, same
from encoders import load_encoder
from myfla.models import load_model
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


def make(kind):
    """The writer of that kind."""
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


KINDS = ("encoder", "cache", "checkpoint", "model folder")
