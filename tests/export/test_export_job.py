"""``job=export``: the files equal PyTorch, run without the project, and refusals say why."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from app.errors import RunError
from app.export.formats import write_torch_export
from app.export.modules import EncoderStep, WholeEncoder
from app.export.parity import compare_step, compare_whole, require
from app.jobs.export import run
from cfg.app import AppConfig
from cfg.export import ExportJobConfig
from cfg.validation import ConfigError
from encoders import load_encoder
from encoders.pipeline import InputPipeline
from encoders.schema import InputSchema
from encoders.training.tasks.spec import TaskSpec
from encoders.training.tasks.task import build_task
from encoders.training.trained import load_trained, save_task
from export_subjects import ENTRIES, small_encoder
from myfla.testing import assert_close, cases

exports = pytest.mark.skipif(
    not hasattr(getattr(torch, "compiler", None), "is_exporting"), reason="torch.export as used came with PyTorch 2.7")


def app_config(folder, **job):
    """The application's config, as far as the job reads it."""
    return AppConfig(run=str(folder), job=ExportJobConfig(**job))


def run_sample(folder):
    """The sample script in a process that cannot see the project."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    block = "import sys, runpy; [sys.modules.__setitem__(n, None) for n in ('myfla', 'encoders', 'app', 'cfg')]; "
    command = [sys.executable, "-c", block + "runpy.run_path(sys.argv[1])", str(folder / "sample.py")]
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@exports
@cases(name=ENTRIES)
def test_a_stepped_graph_is_the_whole_sequence(name, tmp_path):
    encoder = small_encoder(name)
    step = EncoderStep(encoder)
    x = torch.randn(2, 12, 3)
    with torch.no_grad():
        states = step.first_states(2)
        runner = write_torch_export(step, (x[:, :1], *states), tmp_path / "step.pt2", dynamic=False)
        hidden = []
        for t in range(12):
            before = [s.clone() for s in states]
            out, *new = runner((x[:, t : t + 1], *states))
            assert all(torch.equal(a, b) for a, b in zip(before, states))  # nothing is written in place
            hidden.append(out)
            states = new
        assert_close(torch.cat(hidden, 1), encoder(x).hidden, rms=1e-5)


def stream(runner, states, x):
    """The hidden states of ``x [B, T, D]``, step by step, and the last states."""
    hidden = []
    for t in range(x.shape[1]):
        out, *states = runner((x[:, t : t + 1], *states))
        hidden.append(out)
    return torch.cat(hidden, 1), states


def with_attention(**settings):
    attn = {"layers": [1], "num_heads": 2, "num_kv_heads": 1, **settings}
    return small_encoder("gated_deltanet", num_layers=2, attn=attn)


@cases(window=[None, 1, 4, 40])
def test_attention_in_steps_is_the_whole_sequence(window):
    encoder, x = with_attention(window_size=window), torch.randn(2, 200, 3)
    step = EncoderStep(encoder, context=200 if window is None else None)
    with torch.no_grad():
        hidden, states = stream(lambda given: step(*given), step.first_states(2), x)
        assert_close(hidden, encoder(x).hidden, rms=1e-5)
    assert step.state_names[-1] == "seen" and states[-1].tolist() == [200, 200]


@exports
def test_a_stepped_graph_of_attention_is_the_whole_sequence(tmp_path):
    encoder, x = with_attention(window_size=4), torch.randn(2, 30, 3)
    step = EncoderStep(encoder)
    with torch.no_grad():
        states = step.first_states(2)
        runner = write_torch_export(step, (x[:, :1], *states), tmp_path / "step.pt2", dynamic=False)
        assert_close(stream(runner, states, x)[0], encoder(x).hidden, rms=1e-5)


def test_after_more_tokens_than_its_context_attention_sees_the_last_ones():
    whole, near = with_attention(), with_attention(window_size=8)
    near.load_state_dict(whole.state_dict())
    step, x = EncoderStep(whole, context=7), torch.randn(1, 20, 3)
    with torch.no_grad():
        hidden, _ = stream(lambda given: step(*given), step.first_states(1), x)
        assert_close(hidden, near(x).hidden, rms=1e-5)


def export_attention(folder, format, **job):
    with_attention(window_size=5).save(folder / "run")
    assert run(app_config(folder / "run", format=format, **job), folder / "out") <= 1e-5
    inputs = json.loads((folder / "out" / "export.json").read_text())["inputs"]
    assert inputs["layer1_attn_state_0"]["shape"] == [1, 5, 4]
    assert inputs["seen"] == {"shape": [1], "dtype": "int64"}
    assert len(run_sample(folder / "out")) == 5


@exports
def test_the_job_exports_attention_to_onnx(tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    export_attention(tmp_path, "onnx", graphs="step")


@exports
@pytest.mark.slow
def test_the_job_exports_attention(tmp_path):
    export_attention(tmp_path, "torch_export", length=20)


def test_attention_without_a_window_asks_for_a_context(tmp_path):
    small_encoder("gated_deltanet", attn={"layers": [0], "num_heads": 2}).save(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"job\.context must be given for an encoder whose layer 0 is attention "
                       r"without a window; got None; job\.context=N: a stream of N tokens equals PyTorch's"):
        run(app_config(tmp_path / "run", format="torch_export"), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    with pytest.raises(ConfigError, match=r"job\.context must be"):
        ExportJobConfig(context=0)


@exports
@pytest.mark.slow
@cases(name=ENTRIES)
def test_one_exported_graph_serves_every_length(name, tmp_path):
    whole = WholeEncoder(small_encoder(name))
    with torch.no_grad():
        runner = write_torch_export(whole, (torch.zeros(3, 101, 3),), tmp_path / "encoder.pt2", dynamic=True)
        assert compare_whole(whole, runner, [(2, 2), (1, 5), (2, 64), (3, 101), (4, 200)]) <= 1e-5


@exports
@cases(name=ENTRIES, format=["onnx", "torch_export"])
def test_the_job_writes_a_step_that_equals_pytorch_and_runs_alone(name, format, tmp_path):
    if format == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            pytest.importorskip(package)
    encoder, out = small_encoder(name), tmp_path / "out"
    encoder.save(tmp_path / "run")
    out.mkdir()
    more = dict(length=20) if format == "torch_export" else dict(graphs="step")
    worst = run(app_config(tmp_path / "run", format=format, batch=2, **more), out)
    facts = json.loads((out / "export.json").read_text())
    assert 0 < worst <= 1e-5 and facts["steps"] == 200
    assert next(iter(facts["inputs"])) == "x" and all(s["shape"][0] == 2 for s in facts["inputs"].values())
    assert len(run_sample(out)) == 5


@exports
@pytest.mark.slow
@cases(name=ENTRIES)
def test_onnx_of_a_fixed_length_equals_pytorch(name, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    small_encoder(name).save(tmp_path / "run")
    assert run(app_config(tmp_path / "run", format="onnx", length=40), tmp_path) <= 1e-5
    assert (tmp_path / "encoder.onnx").exists()


def test_weights_come_back_and_list_alone(tmp_path):
    encoder, out = small_encoder("rwkv7"), tmp_path / "out"
    encoder.save(tmp_path / "run")
    out.mkdir()
    assert run(app_config(tmp_path / "run", format="safetensors"), out) == 0
    assert len(run_sample(out)) == len(encoder.state_dict())


@cases(stop_at=range(5))
def test_an_export_that_is_cut_off_leaves_nothing(stop_at, tmp_path, monkeypatch):
    """Before any of the files takes its place; the first of five does so while the weights are written."""
    small_encoder("rwkv7").save(tmp_path / "run")
    out, replace, moved = tmp_path / "out", Path.replace, []
    limit = [stop_at]

    def stopping(source, target):
        if ".export-" in str(source):
            if len(moved) == limit[0]:
                raise KeyboardInterrupt
            moved.append(Path(target).name)
        return replace(source, target)

    monkeypatch.setattr(Path, "replace", stopping)
    config = app_config(tmp_path / "run", format="safetensors")
    with pytest.raises(KeyboardInterrupt):
        run(config, out)
    assert len(moved) == stop_at and not list(out.iterdir())
    limit[0] = -1
    run(config, out)
    assert len(moved) == stop_at + 5 and moved[-1] == "export.json"
    assert {path.name for path in out.iterdir()} == {*moved[-4:]}


def test_an_older_export_is_left_alone(tmp_path):
    small_encoder("rwkv7").save(tmp_path / "run")
    config = app_config(tmp_path / "run", format="safetensors")
    run(config, tmp_path / "out")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(RunError, match=r"hydra\.run\.dir must be a folder without another export's export\.json; got "
                       r".*out'; leave hydra\.run\.dir out to get a new folder"):
        run(config, tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_a_head_standardises_inside_the_graph():
    encoder = small_encoder("gated_deltanet")
    mean, std = (1.0, 2.0, 3.0), (2.0, 4.0, 0.5)
    pipeline = InputPipeline(InputSchema.unnamed(3), mean=mean, std=std)
    task = build_task(TaskSpec("classify", "classes", 4, False, list("abcd")), 8)
    x = torch.randn(2, 5, 3)
    with torch.no_grad():
        hidden, _embedding, logits = WholeEncoder(encoder, pipeline, task)(x * torch.tensor(std) + torch.tensor(mean))
        want = encoder(x)
        assert_close(hidden, want.hidden, rms=1e-5)
        assert_close(logits, want.embedding @ task.head.weight.t() + task.head.bias, rms=1e-5)


def test_a_graph_that_computes_something_else_is_refused():
    step = EncoderStep(small_encoder("rwkv7"))
    with torch.no_grad():
        same = compare_step(step, lambda given: list(step(*given)), 1, 3)
        off = compare_step(step, lambda given: [t + 1e-3 for t in step(*given)], 1, 3)
        broken = compare_step(step, lambda given: [t * float("nan") for t in step(*given)], 1, 3)
    require({"step.onnx": same}, 1e-5)
    for figure in (off, broken):
        with pytest.raises(RunError, match=r"step\.onnx must equal PyTorch within job\.tolerance=1e-05"):
            require({"step.onnx": figure}, 1e-5)


def test_refusals_name_field_and_way_out(tmp_path):
    with pytest.raises(ConfigError, match=r"run must be the folder of a finished run.*job=export run="):
        config = app_config(tmp_path)
        config.run = None
        run(config, tmp_path)
    with pytest.raises(RunError, match="must hold an intact encoder"):
        run(app_config(tmp_path), tmp_path)
    with pytest.raises(ConfigError, match=r"job\.format"):
        ExportJobConfig(format="tensorrt")
    with pytest.raises(ConfigError, match=r"job\.graphs must be one of all, whole, step"):
        ExportJobConfig(graphs="both")
    small_encoder("gated_deltanet", direction="bidirectional").save(tmp_path / "both")
    with pytest.raises(RunError, match=r"job\.graphs must be whole for this run: run=.*both' must hold an enco"):
        run(app_config(tmp_path / "both", graphs="step"), tmp_path / "out")
    with pytest.raises(ConfigError, match=r"job\.length"):
        ExportJobConfig(length=1)


def trained_run(folder, kind, name, direction, missing="error", **more):
    """A run of four classes or two values, a sequence or a step, on data far from zero."""
    spec = {"classes": TaskSpec("classify", "classes", 4, False, list("abcd")),
            "steps": TaskSpec("classify", "classes", 4, True, list("abcd")),
            "values": TaskSpec("regress", "values", 2, False, ["u", "v"])}[kind]
    names = {"classes" if kind != "values" else "targets": tuple(spec.names)}
    data = [torch.randn(9, 3, dtype=torch.float64) * torch.tensor([1.0, 1e-3, 1e3]) + torch.tensor([0.0, 5.0, 1e4])]
    pipeline = InputPipeline.fit(data, missing=missing, own_scale=more.pop("own_scale", False), **names)
    encoder = small_encoder(name, direction=direction, input_size=pipeline.width, **more)
    encoder.save(folder, pipeline)
    task = build_task(spec, 8)
    if kind == "values":
        task.measure(torch.randn(40, 2) * 7 + 100)
    save_task(folder, task)
    return load_trained(folder)


def needs_onnx():
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)


WHOLE = [("classes", "inception", "bidirectional", "onnx", {"stem_stride": 4}),
         pytest.param(("classes", "gated_deltanet", "bidirectional", "onnx", {}), marks=pytest.mark.slow),
         pytest.param(("values", "inception", "bidirectional", "torch_export", {"stem_stride": 8, "missing": "mean"}),
                      marks=pytest.mark.slow),
         pytest.param(("classes", "gated_deltanet", "bidirectional", "onnx",
                       {"stem": "conv", "stem_stride": 4, "pooling": "attention"}), marks=pytest.mark.slow),
         pytest.param(("values", "rwkv7", "causal", "torch_export", {"stem": "patch", "stem_stride": 3,
                                                                     "own_scale": True}), marks=pytest.mark.slow),
         pytest.param(("classes", "rwkv7", "causal", "onnx", {"missing": "mean"}), marks=pytest.mark.slow),
         pytest.param(("values", "gated_deltanet", "causal", "onnx", {"missing": "forward"}), marks=pytest.mark.slow),
         pytest.param(("values", "rwkv7", "bidirectional", "onnx", {"own_scale": True}), marks=pytest.mark.slow),
         pytest.param(("steps", "gated_deltanet", "bidirectional", "onnx", {}), marks=pytest.mark.slow),
         pytest.param(("classes", "rwkv7", "bidirectional", "torch_export", {"missing": "forward"}),
                      marks=pytest.mark.slow)]


@exports
@pytest.mark.parametrize("case", WHOLE, ids=lambda case: "-".join(case[:4]))
def test_a_whole_model_runs_raw_data_of_any_size(case, tmp_path):
    """From raw data to logits or values, as `job=predict` gives them."""
    kind, name, direction, form, more = case
    if form == "onnx":
        needs_onnx()
    trained = trained_run(tmp_path / "run", kind, name, direction, **more)
    out = tmp_path / "out"
    assert run(app_config(tmp_path / "run", format=form, graphs="whole"), out) <= 1e-5
    facts = json.loads((out / "export.json").read_text())
    assert facts["encoder_inputs"]["x"]["shape"] == ["batch", "length", 3] and "inputs" not in facts
    assert facts["classes" if kind != "values" else "targets"] == trained.task.spec.names
    assert facts["encoder_outputs"] == ["hidden", "embedding", "values" if kind == "values" else "logits"]
    assert len(run_sample(out)) == (3 if kind == "values" else 4)
    encoder = load_encoder(tmp_path / "run")
    for batch, length in ((1, 1), (2, 2), (1, 3), (3, 4), (2, 5), (5, 37), (2, 130)):
        x = WholeEncoder(trained.encoder, trained.pipeline).sample(batch, length)
        if form == "onnx":
            import onnxruntime

            session = onnxruntime.InferenceSession(str(out / "encoder.onnx"), providers=["CPUExecutionProvider"])
            assert session.get_inputs()[0].shape == ["batch", "length", 3]
            hidden, embedding, outputs = map(torch.from_numpy, session.run(None, {"x": x.numpy()}))
        else:
            hidden, embedding, outputs = torch.export.load(str(out / "encoder.pt2")).module()(x)
        with torch.no_grad():
            want = encoder(x)
            raw = trained.task.head(want.hidden if kind == "steps" else want.embedding)
        if kind == "values":
            raw = raw.double() * trained.task.target_std + trained.task.target_mean
        for got, truth in ((hidden, want.hidden), (embedding, want.embedding), (outputs, raw)):
            assert_close(got.double().detach(), truth.double(), rms=1e-5)


def test_a_model_that_no_graph_fits_names_the_way_out(tmp_path, monkeypatch):
    def failing(*given, **options):
        raise RuntimeError("Constraints violated\nmore")

    trained_run(tmp_path / "run", "classes", "gated_deltanet", "bidirectional")
    monkeypatch.setattr(torch.export, "export", failing)
    with pytest.raises(RunError, match=r"job\.length must be given for this encoder, of which PyTorch makes no graph "
                       r"for every length: Constraints violated; job\.length=TOKENS"):
        run(app_config(tmp_path / "run", format="torch_export"), tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
