"""What a run's folder holds of its task, and the one loader of it."""

import pytest
import torch

from app.errors import RunError
from app_runs import compose_app
from encoders.pipeline import InputPipeline
from encoders.schema import InputSchema
from encoders.training.run_config import read_config, write_config
from encoders.training.tasks.spec import TaskSpec
from encoders.training.tasks.task import build_task
from encoders.training.trained import load_trained, save_task
from myfla.models.sealed_file import read_sealed, write_sealed
from myfla.testing import cases
from small_encoders import small

SPECS = {
    "classes": TaskSpec("classify", "classes", 3, False, ["a", "b", "c"]),
    "steps": TaskSpec("classify", "classes", 2, True, ["no", "yes"]),
    "values": TaskSpec("regress", "values", 2, False, ["x", "y"]),
    "tokens": TaskSpec("next_step", "classes", 7, True),
}


def make(folder, name, **changes):
    encoder = small("gated_deltanet", torch.float32, **({"vocab_size": 7} if name == "tokens" else {}), **changes)
    spec = SPECS[name]
    names = {"classes" if spec.kind == "classes" else "targets": None if spec.names is None else tuple(spec.names)}
    pipeline = InputPipeline(InputSchema.unnamed(3), "forward", mean=(0.0, 1.0, 2.0), std=(1.0, 2.0, 3.0), **names)
    pipeline = InputPipeline.tokens(7) if name == "tokens" else pipeline
    encoder.save(folder, pipeline)
    task = build_task(spec, 8)
    if name == "values":
        task.measure(torch.tensor([[1.0, 5.0], [3.0, 5.0], [float("nan"), 1.0]]))
        assert task.target_mean.tolist() == [2.0, 5.0] and task.target_std.tolist() == [1.0, 1.0]
    save_task(folder, task)
    return encoder, task, pipeline


@cases(name=list(SPECS))
def test_a_model_comes_back_whole(tmp_path, name):
    encoder, task, pipeline = make(tmp_path, name)
    again = load_trained(tmp_path)
    x = torch.randint(7, (2, 5)) if name == "tokens" else torch.randn(2, 5, 3)
    with torch.no_grad():
        assert torch.equal(again.task(again.encoder(x)), task(encoder(x)))
        if name == "values":
            outputs = task(encoder(x))
            assert torch.equal(again.task.predict(outputs)["value"], outputs.double() + torch.tensor([2.0, 5.0]))
    assert again.task.spec == task.spec and not again.task.training
    assert again.classes == (SPECS[name].names if name in ("classes", "steps") else None)
    assert again.pipeline == pipeline


def test_an_encoder_alone_has_no_task(tmp_path):
    small("gated_deltanet").save(tmp_path)
    assert load_trained(tmp_path)[2:] == (None, None) and load_trained(tmp_path).classes is None


@cases(change=["nothing", "another version", "another task", "another encoder", "cut"])
def test_a_folder_that_does_not_fit_is_named(tmp_path, change):
    path = tmp_path / "task.safetensors"
    make(tmp_path, "classes")
    tensors, facts = read_sealed(path, "myfla.task", ValueError)
    reasons = {"nothing": "which is not a folder", "another version": "version must be 2; got 9; it was written by",
               "another task": "task must be a task's description", "another encoder": "tensors must be",
               "cut": "must hold an intact encoder; myfla.task file"}
    if change == "another version":
        write_sealed(path, "myfla.task", tensors, {**facts, "version": 9})
    elif change == "another task":
        write_sealed(path, "myfla.task", tensors, {**facts, "task": {"objective": "classify"}})
    elif change == "another encoder":
        tensors["head.weight"] = torch.zeros(3, 9)
        write_sealed(path, "myfla.task", tensors, facts)
    elif change == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunError) as caught:
        load_trained(tmp_path / "none" if change == "nothing" else tmp_path)
    assert reasons[change] in str(caught.value)


def test_a_runs_config_comes_back_as_it_was(tmp_path):
    settings = ["data=ts", "data.train_path=a", "data.test_path=b", "job.noise=0.5", "seed=3"]
    config = compose_app(["encoder=rwkv7", *settings])
    write_config(config, tmp_path / "config.yaml")
    assert read_config(tmp_path) == config


@cases(change=[None, ("noise:", "nose:"), ("noise: 0.0", "noise: -1"), ("name: ts", "name: tss"), ("data:", "dada:")])
def test_a_config_that_breaks_the_rules_is_named(tmp_path, change):
    config = compose_app(["data=ts", "data.train_path=a", "data.test_path=b"])
    reason = "No such file"
    if change is not None:
        write_config(config, tmp_path / "config.yaml")
        path = tmp_path / "config.yaml"
        path.write_text(path.read_text().replace(*change))
        reason = {"nose:": "job.nose must be a field of this version", "noise: -1": "job.noise must be a finite number",
                  "name: tss": "data.name must be one of", "dada:": "'data'"}[change[1]]
    with pytest.raises(RunError, match=r"must hold the config.yaml of a trained run; .*another version") as caught:
        read_config(tmp_path)
    assert reason in str(caught.value)
