"""Third-party configs in Hydra, and the example plugin as it is installed."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from cfg.encoder import EncoderConfig
from cfg.validation import ConfigError
from encoders import register_plugin_configs
from encoders.configs import encoder_config, switch_encoder
from encoders.factory import Registry
from fake_plugins import distribution, failing_import, plugin, tiny
from myfla.testing import cases, raises
from tiny_encoder import TinyStrategy

hydra = pytest.importorskip("hydra")
from hydra.core.config_store import ConfigStore  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
ACME = ROOT / "examples" / "acme_encoder"


@pytest.fixture
def store(monkeypatch):
    """Hydra's ConfigStore, without what a test puts in."""
    monkeypatch.setattr(ConfigStore.instance(), "repo", {})
    return ConfigStore.instance()


def stored(store, group):
    try:
        return [name[: -len(".yaml")] for name in store.list(group) if name.endswith(".yaml")]
    except OSError:
        return []


def test_a_plugin_config_composes_under_its_name(store):
    assert register_plugin_configs(asked=[], registry=Registry(plugins=[tiny()])) == []
    assert stored(store, "encoder") == stored(store, "encoder/schema") == ["tiny"]


def test_a_plugin_with_its_own_yaml_gets_a_schema_only(store):
    from tiny_encoder import TinyConfig

    own = plugin("own", lambda register: register("tiny", strategy=TinyStrategy, config=TinyConfig, preset=True))
    register_plugin_configs(asked=[], registry=Registry(plugins=[own]))
    assert (stored(store, "encoder"), stored(store, "encoder/schema")) == ([], ["tiny"])


@cases(asked=[True, False])
def test_a_broken_plugin_is_stored_only_for_who_asks(store, asked):
    late = plugin("late", lambda register: register("late", strategy="nowhere:S", config="nowhere:C"))
    plugins = [plugin("bad", load=failing_import), late, tiny(), plugin("off")]
    registry = Registry(plugins=plugins, blocked=["off", "rwkv7"])
    lost = register_plugin_configs(asked=["bad", "late", "off", "rwkv7"] if asked else ["tiny"], registry=registry)
    states = {row.name: row.state for row in lost}
    assert states == {"bad": "failed", "late": "failed", "off": "blocked", "rwkv7": "blocked"}
    assert sorted(stored(store, "encoder")) == (["bad", "late", "off", "tiny"] if asked else ["tiny"])


def test_names_are_read_from_the_command_line(store, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["app", "-m", "encoder=tiny,bad", "encoder.hidden_size=8"])
    broken = [plugin(name, load=failing_import) for name in ("bad", "worse")]
    register_plugin_configs(registry=Registry(plugins=broken))
    assert stored(store, "encoder") == ["bad"]


def test_a_failing_store_is_not_hidden(store, monkeypatch):
    @dataclass
    class Unstorable(EncoderConfig):
        name: str = "odd"
        value: "complex" = 1j

    odd = plugin("odd", lambda register: register("odd", strategy=TinyStrategy, config=Unstorable))
    (row,) = register_plugin_configs(asked=[], registry=Registry(plugins=[odd, tiny()]))
    assert (row.name, row.state) == ("odd", "failed") and stored(store, "encoder") == ["tiny"]


def test_mappings_reach_every_strategy():
    config = encoder_config({"name": "rwkv7", "input_size": 3, "hidden_size": 24})
    other = switch_encoder(config, "gated_deltanet", use_gate=False)
    assert (other.name, other.hidden_size, other.use_gate) == ("gated_deltanet", 24, False)
    with raises(ConfigError, "encoder.fuse_norm belongs to 'rwkv7', not to 'gated_deltanet'; got True"):
        switch_encoder(config, "gated_deltanet", fuse_norm=True)
    with raises(ConfigError, "encoder.name must be a string; got 'rwkv7'"):
        encoder_config("rwkv7")


@pytest.fixture
def acme(tmp_path):
    """``sys.path`` of a program that has the example installed: its source, and what `pip` notes about it."""
    distribution(tmp_path, "acme-encoder", "0.1.0", {"acme": "acme_encoder.plugin"})
    return [str(ROOT / "src"), str(ROOT / "libs"), str(ACME / "src"), str(tmp_path)]


def run(path, code, *arguments):
    done = subprocess.run([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout.decode()
    return done.stdout.decode().splitlines()


def test_the_entry_point_of_the_example_is_its_plugin():
    text = (ACME / "pyproject.toml").read_text(encoding="utf-8")
    assert '[project.entry-points.encoders]\nacme = "acme_encoder.plugin"' in text
    assert 'name = "acme-encoder"' in text and 'version = "0.1.0"' in text


def test_the_example_composes_without_torch_and_refuses_by_key(acme):
    lines = run(acme, """
import sys
from dataclasses import dataclass
import hydra
from cfg.encoder import EncoderConfig
from cfg.hydra_versions import store_config, version_base
from cfg.store import register_encoder_configs
from encoders import register_plugin_configs
from omegaconf import MISSING, OmegaConf

@dataclass
class Root:
    encoder: EncoderConfig = MISSING

register_encoder_configs()
print(register_plugin_configs())
store_config(name="root", node=Root)
with hydra.initialize_config_dir(sys.argv[1], **version_base()):
    config = hydra.compose("root", ["+encoder=acme", "encoder.kernel_size=8", "encoder.hidden_size=24"])
print(type(OmegaConf.to_object(config.encoder)).__name__, config.encoder.kernel_size, "torch" in sys.modules)
config.encoder.kernel_size = 0
try:
    OmegaConf.to_object(config.encoder)
except Exception as problem:
    print(problem)
""", str(ROOT / "conf"))
    assert lines[:2] == ["[]", "AcmeEncoderConfig 8 False"]
    assert "encoder.kernel_size must be an integer from 1 to 256; got 0" in lines[2]


def test_the_example_does_what_every_encoder_does(acme, tmp_path):
    lines = run(acme, """
import sys, torch
from encoders import available_strategies, build_encoder, load_encoder
from myfla.testing import assert_close
torch.manual_seed(0)
config = {"name": "acme", "input_size": 3, "hidden_size": 8, "kernel_size": 5}
encoder = build_encoder(config, dtype=torch.float64)
x = torch.randn(2, 9, 3, dtype=torch.float64)
whole = encoder(x)
cache, parts = None, []
for piece in x.split([1, 0, 5, 3], dim=1):
    out = encoder(piece, cache=cache, use_cache=True)
    cache = out.cache
    parts.append(out.hidden)
assert_close(torch.cat(parts, 1), whole.hidden, rms=1e-12)
ragged = encoder(torch.where(torch.arange(9)[:, None] < 4, x, float("nan") * x), lengths=[4, 4])
assert_close(ragged.hidden[:, :4], whole.hidden[:, :4], rms=1e-12)
both = build_encoder({**config, "direction": "bidirectional", "gate": False}, dtype=torch.float64)
both(x, lengths=[9, 2]).embedding.sum().backward()
assert all(p.grad is not None for p in both.parameters())
encoder.save(sys.argv[1])
assert torch.equal(load_encoder(sys.argv[1])(x).embedding, whole.embedding)
print([row for row in available_strategies() if row.name == "acme"])
""", str(tmp_path / "run"))
    assert "plugin='acme', distribution='acme-encoder', version='0.1.0', state='ready'" in lines[-1]


def test_an_encoder_of_a_plugin_that_is_gone_names_it(acme, tmp_path):
    folder = str(tmp_path / "run")
    run(acme, "import sys\nfrom encoders import build_encoder\n"
              "build_encoder({'name': 'acme', 'input_size': 3}).save(sys.argv[1])", folder)
    code = "try:\n    load_encoder(sys.argv[1])\nexcept ValueError as problem:\n    print(problem)"
    (line,) = run(acme[:2], "import sys\nfrom encoders import load_encoder\n" + code, folder)
    assert "encoder 'acme' is not known" in line and line.endswith("install acme-encoder 0.1.0")
