"""Runs to stream with, rows to stream, and what the outputs must be."""

import functools
import json
from pathlib import Path

import numpy as np
import torch

from encoders.batch import make_layout
from encoders.io import read_encoder
from encoders.pipeline import InputPipeline
from encoders.schema import InputSchema
from encoders.training.tasks.spec import TaskSpec
from encoders.training.tasks.task import build_task
from encoders.training.trained import save_task
from myfla.models.sealed_file import read_sealed
from myfla.testing import max_error, rms_error
from small_encoders import small

CLASSES = ["one", "two", 'th"ree']
WIDTH = 3


SPEC = TaskSpec("classify", "classes", len(CLASSES), False, CLASSES)


def make_run(folder, name="gated_deltanet", dtype=torch.float32, head=True, spec=SPEC, schema=None, missing="error",
             mean=None, **changes):
    """A folder as ``job=train`` leaves it: a small encoder that is awake, its input pipeline, and a head.

    ``inception`` is no encoder's name: GatedDeltaNet behind that stem.
    """
    if name == "inception":
        name, changes = "gated_deltanet", {"stem": name, "stem_kernel": 5, **changes}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    encoder = small(name, dtype, **changes)
    width = encoder.config.input_size or WIDTH
    if not head:
        encoder.save(folder)
        return folder
    draw = torch.Generator().manual_seed(5)
    task = build_task(spec, encoder.config.hidden_size)
    task.head.weight.data = torch.randn(spec.outputs, encoder.config.hidden_size, generator=draw)
    task.head.bias.data = torch.randn(spec.outputs)
    if spec.kind == "values" and not spec.shifts:
        task.measure(torch.randn(50, spec.outputs, generator=draw) * 3 + 20)
    names = {"classes" if spec.kind == "classes" else "targets": tuple(spec.names or ()) or None}
    middle, std = torch.randn(width, generator=draw).tolist(), (torch.rand(width, generator=draw) + 0.5).tolist()
    middle = middle if mean is None else [mean] * width
    pipeline = InputPipeline(schema or InputSchema.unnamed(width), missing, mean=tuple(middle), std=tuple(std), **names)
    if encoder.config.vocab_size is not None:
        pipeline = InputPipeline.tokens(encoder.config.vocab_size, **names)
    encoder.save(folder, pipeline)
    save_task(folder, task)
    return folder


def make_rows(count, sessions, seed=0):
    """``[(session, [features])]``; sessions come in no order, some often."""
    draw = np.random.default_rng(seed)
    picks = np.minimum(draw.integers(0, sessions, count), draw.integers(0, sessions, count))
    values = draw.normal(size=(count, WIDTH)).astype(np.float32)
    return [(f"s{pick}", [float(x) for x in row]) for pick, row in zip(picks.tolist(), values)]


def as_json(rows):
    return "".join(json.dumps({"session": session, "features": features}) + "\n" for session, features in rows)


def as_csv(rows):
    header = ",".join(["session", *(f"f{i}" for i in range(WIDTH))])
    return "".join(line + "\n" for line in [header, *(",".join([s, *map(repr, f)]) for s, f in rows)])


def truth(folder, rows):
    """For each row, ``(session, step, embedding)``: the pooling of what the encoder says of the session seen whole."""
    encoder, pipeline = read_encoder(folder)
    sessions, found = {}, []
    for session, features in rows:
        sessions.setdefault(session, []).append(features)
    with torch.no_grad():
        for session, features in sessions.items():
            x = torch.tensor(features, dtype=torch.float64)
            if pipeline is not None:
                x = (x - torch.tensor(pipeline.mean).double()) / torch.tensor(pipeline.std).double()
            sessions[session] = encoder(x.to(encoder.input.weight.dtype)[None]).hidden
        steps = dict.fromkeys(sessions, 0)
        for session, _ in rows:
            steps[session] += 1
            so_far = sessions[session][:, : steps[session]]
            found.append((session, steps[session], encoder.pooling(so_far, make_layout(so_far))[0]))
    return found


def check(folder, rows, outputs, emit="embedding", first=1, rms=2e-6):
    """Each row once, in order, with the values of an encoder that saw each session whole.

    Args:
        outputs: parsed JSON objects.
        first: line of the first row.
    """
    want = truth(folder, rows)
    assert [out["row"] for out in outputs] == list(range(first, first + len(rows)))
    assert [(out["session"], out["step"]) for out in outputs] == [(s, n) for s, n, _ in want]
    embeddings = torch.stack([e for _, _, e in want]).double()
    if emit == "embedding":
        got = torch.tensor([out["embedding"] for out in outputs], dtype=torch.float64)
        assert close(got, embeddings, rms), float((got - embeddings).norm() / embeddings.norm())
        return
    head = _head(folder)
    shares = (embeddings @ head["head.weight"].double().t() + head["head.bias"].double()).softmax(-1)
    share, index = shares.max(-1)
    named = [out.get("probabilities") or {name: out[f"probability {name}"] for name in CLASSES} for out in outputs]
    every = torch.tensor([[one[name] for name in CLASSES] for one in named], dtype=torch.float64)
    assert close(every, shares, 5 * rms)
    assert [out["prediction"] for out in outputs] == [CLASSES[i] for i in index.tolist()]
    assert close(torch.tensor([out["probability"] for out in outputs], dtype=torch.float64), share, 5 * rms)


def close(got, want, rms):
    return rms_error(got, want) <= rms and max_error(got, want) <= 10 * rms


def parse(text):
    return [json.loads(line) for line in text.splitlines()]


def _head(folder):
    path = Path(folder) / "task.safetensors"
    return read_sealed(path, "myfla.task", ValueError)[0] if path.exists() else None


class Crash(BaseException):
    """Ends a job as a kill does: nobody catches it, nothing is tidied up."""


def serve(folder, source, state, output, sink=None, **settings):
    """One run of the job in this process, on a file; returns its figures.

    Args:
        folder: of the trained run.
        source: the input file.
        state: the state folder.
        output: the output file.
        sink: makes another sink from the store.
    """
    from app.streaming.engine import Engine
    from app.streaming.service import Service
    from app.streaming.sinks import FileSink
    from cfg.stream import StreamJobConfig

    memory = settings.pop("memory", 1 << 30)
    said = settings.pop("said", [])
    config = StreamJobConfig(input=None if source is None else str(source), **{"emit": "embedding", **settings})
    model = _loaded(Path(folder), config.emit)
    store, made = open_store(model, state), None
    try:
        engine = Engine(model, store, memory, config.emit)
        made = sink(store) if sink else FileSink(Path(output), store.get("sink"))
        figures = Service(config, store, engine, made, said.append).run()
        made.close()
    except BaseException:
        store._db.close()  # as a kill leaves it: what was not committed is gone
        if made is not None:
            made.abandon(begun=True)
        raise
    store.close()
    return figures


@functools.lru_cache(maxsize=8)
def _loaded(folder, emit):
    """A model keeps no state, so that jobs one after another can share it."""
    from app.streaming.model import load_model

    return load_model(folder, emit)


def open_store(model, state):
    from app.streaming.store import Store

    return Store(Path(state), {"model": model.key})
