"""``job=describe``: strategies with their state, and the encoder layer by layer."""

import json

import pytest
import torch

from app.errors import RunError
from app.jobs import run_job
from app.layers import layer_rows, state_rows
from app.sizes import sized_encoder
from app_runs import compose_app, run_app
from cfg.validation import ConfigError
from encoders import build_encoder
from myfla.testing import cases
from runs import untrained


def small(name, **more):
    return build_encoder({"name": name, "input_size": 5, "hidden_size": 16, "num_layers": 2, **more})


@cases(name=["gated_deltanet", "rwkv7"], direction=["causal", "bidirectional"], depth=[1, 2, 3])
def test_the_rows_of_any_depth_hold_every_parameter_once(name, direction, depth):
    encoder = small(name, direction=direction)
    rows = layer_rows(encoder, 2, 7, depth)
    shown = [shape for row in rows for shape in row.weights.values()]
    assert sorted(shown) == sorted(list(p.shape) for p in encoder.parameters())
    for row in rows:
        module = encoder.get_submodule(row.path)
        assert row.kind == type(module).__name__
        assert row.parameters == sum(p.numel() for p in module.parameters())


def test_shapes_are_those_of_a_call_and_hooks_are_gone():
    encoder = small("gated_deltanet").train()
    rows = {row.path: row for row in layer_rows(encoder, 3, 9, 3)}
    assert rows["input"].output == [[3, 9, 16]] and rows["pooling"].output == [[3, 16]]
    assert rows["blocks.1.mixer.o_norm"].output[0][-1] == 32
    assert encoder.training and not any(module._forward_hooks for module in encoder.modules())


def test_the_state_is_what_a_cache_holds():
    rows = state_rows(small("rwkv7"))
    assert {row["layer"] for row in rows} == {0, 1}
    assert rows[0] == {"layer": 0, "state": "recurrent_state", "shape": [1, 16, 16], "dtype": "float32", "bytes": 1024}
    assert state_rows(small("rwkv7", direction="bidirectional")) is None
    assert state_rows(small("rwkv7", state_weaving=True)) is None


def test_token_encoders_are_described_without_data(tmp_path):
    config = compose_app(["job=describe", "encoder.vocab_size=11", "job.length=6", "encoder.direction=causal"])
    count = run_job(config, tmp_path)
    facts = json.loads((tmp_path / "describe.json").read_text())
    assert facts["input"] == [2, 6] and facts["parameters"] == count > 0
    assert facts["machine"]["versions"]["torch"] == torch.__version__


def test_token_ids_of_the_data_are_counted(tmp_path):
    assert sized_encoder(compose_app(["job=describe", "data=parity"])).vocab_size == 2


def test_the_encoder_of_a_run_is_described(tmp_path):
    folder = untrained(tmp_path / "run", "encoder=rwkv7", "encoder.direction=causal")
    run_job(compose_app(["job=describe", f"run={folder}"]), tmp_path)
    inputs = json.loads((tmp_path / "describe.json").read_text())["inputs"]
    assert len(inputs["mean"]) == len(inputs["schema"]["features"]) == 12 and len(inputs["classes"]) == 9
    facts = json.loads((tmp_path / "describe.json").read_text())
    assert facts["encoder"]["name"] == "rwkv7" and facts["encoder"]["hidden_size"] == 16 and facts["state"]
    done = run_app(tmp_path, "job=describe", f"run={folder}", "encoder=lstm")
    assert done.returncode == 1 and "error: encoder must be left out with job=describe; got" in done.stderr
    with pytest.raises(RunError, match=r"run must be the folder of a finished run; got .nowhere., which is not a "
                       r"folder"):
        run_job(compose_app(["job=describe", "run=nowhere"]), tmp_path)


def test_strategies_come_with_version_state_and_reason(tmp_path, monkeypatch, capsys):
    from encoders import factory
    from encoders.plugins import Plugin

    def broken():
        raise ImportError("no [bold]module[/bold] named 'acme'")

    registry = factory.Registry(plugins=[Plugin("acme", "acme-encoder", "2.5", broken)])
    monkeypatch.setattr(factory, "_default", registry)
    run_job(compose_app(["job=describe", "encoder.input_size=3"]), tmp_path)
    rows = {row["name"]: row for row in json.loads((tmp_path / "describe.json").read_text())["strategies"]}
    assert rows["gated_deltanet"]["state"] == rows["rwkv7"]["state"] == "ready"
    assert (rows["acme"]["version"], rows["acme"]["state"]) == ("2.5", "failed")
    assert "no [bold]module[/bold] named 'acme'" in rows["acme"]["detail"]
    shown = capsys.readouterr().out
    assert "acme-encoder" in shown and "[bold]module[/bold]" in shown


def test_the_command_prints_what_it_writes(tmp_path):
    done = run_app(tmp_path, "job=describe", "encoder=rwkv7", "hydra.run.dir=out")
    assert done.returncode == 0 and not done.stderr, done.stderr
    for part in ("encoder strategies", "auto (torch on cpu)", "built-in", "blocks.1.mixer", "RWKV7Attention",
                 "parameters", "encoder.direction=bidirectional", "out/describe.json"):
        assert part in done.stdout, part
    facts = json.loads((tmp_path / "out" / "describe.json").read_text())
    assert facts["input"] == [2, 100, 12] and facts["state"] is None


@pytest.mark.parametrize(("override", "message"), [
    ("job.batch=0", "job.batch must be an integer from 1"),
    ("job.length=0", "job.length must be an integer from 1"),
    ("job.depth=0", "job.depth must be an integer from 1 to 100; got 0"),
])
def test_every_rule_names_its_key(override, message):
    with pytest.raises(ConfigError) as caught:
        compose_app(["job=describe", override])
    assert str(caught.value).startswith(message)


def test_a_scale_of_its_own_gives_every_channel_a_second_one():
    assert sized_encoder(compose_app()).input_size == 12
    assert sized_encoder(compose_app(["data.own_scale=true"])).input_size == 24
