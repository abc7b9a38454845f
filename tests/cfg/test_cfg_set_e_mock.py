"""The mock host: it runs as it is asked to, and it can fail."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "src" / "cfg" / "cfg_hf" / "cfg_setE_mock_v004.py"


@pytest.fixture
def mock():
    spec = importlib.util.spec_from_file_location("cfg_setE_mock_v004", str(SCRIPT))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_runs_from_a_bare_checkout_with_src_alone_on_the_path(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(SCRIPT)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          cwd=str(tmp_path), env=env)
    lines = done.stdout.decode().splitlines()
    steps = [line for line in lines if line.startswith("ok ")]
    assert done.returncode == 0 and lines[-1] == f"{len(steps)} steps passed", done.stdout.decode()
    for number, name in enumerate(["rwkv7", "gated_deltanet", "rwkv7", "gated_deltanet"]):
        for step in ("padded", "streamed", "layers"):
            assert any(f"encoder {number} {name}: {step}: " in line for line in steps)
    assert any("switch encoder 2: rwkv7 -> gated_deltanet" in line for line in steps)


def test_the_first_failure_ends_it(mock, monkeypatch, capsys):
    def broken(encoder):
        raise AssertionError("not today")

    monkeypatch.setattr(mock, "check_streamed", broken)
    assert mock.main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "FAILED  encoder 0 rwkv7: streamed: AssertionError: not today"


@pytest.mark.parametrize("wrong", ["cache", "pads", "layer"])
def test_it_notices_what_it_is_there_to_notice(mock, monkeypatch, capsys, wrong):
    from encoders.stack import Encoder

    forward = Encoder.forward

    def tampered(self, x, **arguments):
        out = forward(self, x, **arguments)
        if wrong == "cache" and arguments.get("cache") is not None:
            return forward(self, x, **{**arguments, "cache": None})
        if wrong == "pads" and arguments.get("lengths") is not None:
            return out._replace(hidden=out.hidden + 1e-6)
        if wrong == "layer" and len(x) == 1:
            return out._replace(hidden=out.hidden * (1 + 1e-6), embedding=out.embedding * (1 + 1e-6))
        return out

    monkeypatch.setattr(Encoder, "forward", tampered)
    assert mock.main() == 1
    assert capsys.readouterr().out.splitlines()[-1].startswith("FAILED  encoder 0 rwkv7: ")


def test_a_foreign_layer_is_noticed(mock):
    encoder = mock.make(mock.host_config()["encoders"][1], 0)
    encoder.blocks[0].mixer.__class__ = type("GatedDeltaNet", (type(encoder.blocks[0].mixer),), {})
    with pytest.raises(AssertionError, match="is foreign"):
        mock.check_layers(encoder)
