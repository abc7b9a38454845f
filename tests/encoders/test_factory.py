"""The factory: built-ins by import, plugins one by one, and errors about wrong names and plugins."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cfg.encoder import ENCODER_CONFIGS, EncoderConfig
from encoders import PluginError, UnknownEncoderError, hookimpl
from encoders.factory import Registry, available_strategies, default_registry, get_strategy
from encoders.plugins import installed_plugins
from fake_plugins import distribution, failing_import, hook, plugin, tiny
from myfla.testing import cases, raises
from tiny_encoder import TinyConfig, TinyStrategy

ROOT = Path(__file__).resolve().parents[2]

KNOWN = ", ".join(ENCODER_CONFIGS)


def exiting_import():
    raise SystemExit(3)


class Misspelt:
    @hookimpl
    def register_encoder(self, register):
        register("tiny", strategy=TinyStrategy, config=TinyConfig)


class WrongSignature:
    @hookimpl
    def register_encoders(self, registrar):
        registrar("tiny", strategy=TinyStrategy, config=TinyConfig)


def raising(register):
    register("tiny", strategy=TinyStrategy, config=TinyConfig)
    raise RuntimeError("out of luck")


BROKEN = {
    "import": (dict(load=failing_import), "ModuleNotFoundError: No module named 'nowhere'"),
    "exit": (dict(load=exiting_import), "SystemExit: 3"),
    "misspelt": (dict(load=Misspelt), "unknown hook 'register_encoder'; did you mean 'register_encoders'?"),
    "signature": (dict(load=WrongSignature), "registrar"),
    "raising": (dict(body=raising), "RuntimeError: out of luck"),
    "empty": (dict(load=object), "LookupError: it registers no encoder; implement register_encoders"),
    "silent": (dict(body=lambda register: None), "LookupError: it registers no encoder"),
    "name": (dict(body=lambda register: register("No Good", strategy=TinyStrategy, config=TinyConfig)),
             "register: name must be lower case letters, digits and underscores; got 'No Good'"),
    "strategy": (dict(body=lambda register: register("tiny", strategy="nocolon", config=TinyConfig)),
                 "register: strategy must be a class or 'package.module:Class'; got 'nocolon'"),
    "config": (dict(body=lambda register: register("tiny", strategy=TinyStrategy, config=TinyConfig())),
               "register: config must be a class or 'package.module:Class'; got TinyConfig("),
    "keyword": (dict(body=lambda register: register("tiny", strategi=TinyStrategy, config=TinyConfig)),
                "TypeError"),
}


def test_built_ins_are_there_without_any_plugin():
    registry = Registry(plugins=[])
    assert registry.names() == list(ENCODER_CONFIGS)
    for name, config_class in ENCODER_CONFIGS.items():
        assert registry.config_class(name) is config_class


def test_a_good_plugin_is_used_like_a_built_in():
    registry = Registry(plugins=[tiny()])
    strategy = registry.get_strategy("tiny")
    assert type(strategy) is TinyStrategy and registry.get_strategy("tiny") is strategy
    assert registry.config_class("tiny") is TinyConfig
    rows = {row.name: row for row in registry.available_strategies()}
    assert rows["tiny"] == ("tiny", "tiny", "tiny-dist", "1.0", "ready", "")


@cases(kind=list(BROKEN))
def test_a_broken_plugin_is_an_error_only_for_who_asks(kind):
    how, cause = BROKEN[kind]
    registry = Registry(plugins=[plugin("bad", **how), tiny("good")])
    assert registry.names() == [*ENCODER_CONFIGS, "tiny"]
    assert type(registry.get_strategy("tiny")) is TinyStrategy
    with raises(PluginError, "encoder 'bad' (bad-dist 1.0) failed to load: ", cause):
        registry.get_strategy("bad")
    states = {row.plugin: (row.state, row.distribution, row.version) for row in registry.available_strategies()}
    assert states["bad"] == ("failed", "bad-dist", "1.0") and states["good"][0] == "ready"


class Misnamed(TinyStrategy):
    name = "other"


class MisnamedConfig(TinyConfig):
    pass


class Unbuildable(TinyStrategy):
    def __init__(self):
        raise RuntimeError("no licence")


class Abstract(TinyStrategy):
    from encoders import EncoderStrategy as _Base

    build_mixer = _Base.build_mixer


LAZY = {
    "strategy module": (dict(strategy="nowhere_at_all:Strategy"), "ModuleNotFoundError"),
    "strategy name": (dict(strategy="encoders.strategy:Nothing"), "AttributeError"),
    "strategy kind": (dict(strategy=dict),
                      "TypeError: its strategy must be a subclass of encoders.EncoderStrategy; got <class 'dict'>"),
    "strategy misnamed": (dict(strategy=Misnamed),
                          "ValueError: Misnamed.name must be 'tiny', as registered; got 'other'"),
    "strategy raises": (dict(strategy=Unbuildable), "RuntimeError: no licence"),
    "strategy abstract": (dict(strategy=Abstract), "TypeError"),
    "config module": (dict(config="nowhere_at_all:Config"), "ModuleNotFoundError"),
    "config kind": (dict(config=dict),
                    "TypeError: its config must be a subclass of cfg.encoder.EncoderConfig; got <class 'dict'>"),
    "config name": (dict(config=EncoderConfig),
                    "ValueError: the field 'name' of EncoderConfig must default to 'tiny'; got '???'"),
    "config of another": (dict(config=MisnamedConfig), "ValueError: TinyStrategy.config_class must be "),
}


@cases(kind=list(LAZY))
def test_what_is_imported_late_is_checked_when_asked_for(kind):
    what, cause = LAZY[kind]
    registry = Registry(plugins=[tiny("bad", **what)])
    assert "tiny" in registry.names()
    with raises(PluginError, "encoder 'tiny' (bad-dist 1.0) failed to load: ", cause):
        registry.get_strategy("tiny")
    row = next(row for row in registry.available_strategies() if row.name == "tiny")
    assert row.state == "failed" and cause in row.detail


def test_an_unknown_name_is_answered_with_the_nearest_and_all():
    registry = Registry(plugins=[tiny()])
    with raises(UnknownEncoderError, "encoder 'gated_deltanets' is not known; did you mean 'gated_deltanet'?; "
                                     f"known: {KNOWN}, tiny"):
        registry.get_strategy("gated_deltanets")
    with raises(UnknownEncoderError, f"encoder 'zzz' is not known; known: {KNOWN}, tiny"):
        registry.get_strategy("zzz")


@cases(name=[None, 3, ["rwkv7"], b"rwkv7", ""])
def test_what_is_no_name_is_not_known(name):
    with raises(UnknownEncoderError, f"encoder {name!r} is not known", f"known: {KNOWN}"):
        Registry(plugins=[]).get_strategy(name)


def test_an_unknown_name_names_plugins_that_could_have_had_it():
    registry = Registry(plugins=[plugin("bad", load=failing_import)])
    with raises(UnknownEncoderError, f"known: {KNOWN}; plugins that did not load:",
                "'bad' (bad-dist 1.0)"):
        registry.get_strategy("zzz")


def test_the_first_of_two_wins_and_the_second_is_listed():
    class Second(TinyStrategy):
        pass

    registry = Registry(plugins=[tiny("one"), tiny("two", strategy=Second)])
    assert type(registry.get_strategy("tiny")) is TinyStrategy
    row = next(row for row in registry.available_strategies() if row.plugin == "two")
    assert (row.state, row.detail) == ("duplicate", "'tiny' is taken by one-dist 1.0")


def test_a_plugin_cannot_replace_a_built_in():
    thief = plugin("thief", lambda register: register("rwkv7", strategy=TinyStrategy, config=TinyConfig))
    registry = Registry(plugins=[thief])
    assert registry.config_class("rwkv7") is ENCODER_CONFIGS["rwkv7"]
    row = next(row for row in registry.available_strategies() if row.plugin == "thief")
    assert row.state == "duplicate" and row.detail.startswith("'rwkv7' is taken by built-in ")


def test_the_same_object_cannot_register_twice():
    both = hook(lambda register: register("tiny", strategy=TinyStrategy, config=TinyConfig))
    registry = Registry(plugins=[plugin("one", load=lambda: both), plugin("two", load=lambda: both)])
    assert registry.get_strategy("tiny")
    with raises(PluginError, "encoder 'two' (two-dist 1.0) failed to load", "registered by another entry point"):
        registry.get_strategy("two")


def test_a_blocked_plugin_is_not_loaded_and_says_why():
    registry = Registry(plugins=[plugin("bad", load=failing_import), tiny("good")], blocked=["bad", "rwkv7"])
    assert registry.names() == [*(name for name in ENCODER_CONFIGS if name != "rwkv7"), "tiny"]
    for name, origin in (("bad", "bad-dist 1.0"), ("rwkv7", "built-in ")):
        with raises(PluginError, f"encoder {name!r} ({origin}", "is blocked: it is named in ENCODERS_BLOCK; take"):
            registry.get_strategy(name)
    assert {row.plugin: row.state for row in registry.available_strategies()}["bad"] == "blocked"


def test_one_plugin_can_offer_several_strategies():
    def both(register):
        register("tiny", strategy=TinyStrategy, config=TinyConfig)
        register("small", strategy="nowhere:X", config="nowhere:Y")

    registry = Registry(plugins=[plugin("pair", both)])
    assert registry.names()[-2:] == ["tiny", "small"]
    assert registry.get_strategy("tiny")
    with raises(PluginError, "encoder 'small' (pair-dist 1.0) failed to load"):
        registry.get_strategy("small")


def test_a_hook_may_leave_its_argument_out():
    class NoArguments:
        @hookimpl
        def register_encoders(self):
            pass

    with raises(PluginError, "it registers no encoder"):
        Registry(plugins=[plugin("bad", load=NoArguments)]).get_strategy("bad")


@cases(name=list(ENCODER_CONFIGS))
def test_both_built_in_strategies_are_ready(name):
    assert get_strategy(name).name == name and get_strategy(name).config_class is ENCODER_CONFIGS[name]
    assert {row.name: row.state for row in available_strategies()}[name] == "ready"


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Two installed distributions, one broken, in a folder of their own."""
    distribution(tmp_path, "broken-encoders", "1.2", {"broken": "broken_encoders_nowhere"})
    distribution(tmp_path, "fine-encoders", "0.3", {"tiny": "fine_encoders"})
    (tmp_path / "fine_encoders.py").write_text(
        "from encoders import hookimpl\n\n\n@hookimpl\ndef register_encoders(register):\n"
        "    register('tiny', strategy='tiny_encoder:TinyStrategy', config='tiny_encoder:TinyConfig')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    monkeypatch.undo()
    sys.modules.pop("fine_encoders", None)
    default_registry(refresh=True)


def test_entry_points_of_installed_distributions_are_found(installed, monkeypatch):
    monkeypatch.syspath_prepend(str(installed))  # on sys.path twice, as an editable checkout can be
    found = {p.name: p.origin for p in installed_plugins()}
    assert found["broken"] == "broken-encoders 1.2" and found["tiny"] == "fine-encoders 0.3"
    default_registry(refresh=True)
    assert type(get_strategy("tiny")).__name__ == "TinyStrategy"
    with raises(PluginError, "encoder 'broken' (broken-encoders 1.2) failed to load: ModuleNotFoundError: ",
                "broken_encoders_nowhere"):
        get_strategy("broken")
    states = {row.plugin: row.state for row in available_strategies()}
    assert (states["broken"], states["tiny"], states["rwkv7"]) == ("failed", "ready", "ready")


def test_the_environment_blocks_plugins(installed, monkeypatch):
    monkeypatch.setenv("ENCODERS_BLOCK", " tiny , broken")
    default_registry(refresh=True)
    with raises(PluginError, "encoder 'tiny' (fine-encoders 0.3) is blocked"):
        get_strategy("tiny")
    assert get_strategy("gated_deltanet")
    monkeypatch.delenv("ENCODERS_BLOCK")
    default_registry(refresh=True)
    assert get_strategy("tiny")


def test_names_and_configs_need_no_torch():
    code = (
        "import sys, encoders\n"
        "from encoders import PluginError, hookimpl, register_plugin_configs\n"
        "from encoders.factory import default_registry\n"
        "registry = default_registry()\n"
        "print([registry.config_class(name).__name__ for name in registry.names()], 'torch' in sys.modules)\n"
        "print(dir(encoders) >= encoders.__all__)\n"
    )
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "libs")])
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True,
                          env={**os.environ, "PYTHONPATH": path, "ENCODERS_BLOCK": "acme"})
    classes = [config.__name__ for config in ENCODER_CONFIGS.values()]
    assert done.stdout.decode().splitlines()[0] == f"{classes} False"


def test_the_package_says_what_it_has():
    import encoders

    for name in encoders.__all__:
        assert getattr(encoders, name).__doc__, name
    assert set(encoders.__all__) <= set(dir(encoders))
    with raises(AttributeError, "module 'encoders' has no attribute 'nothing'"):
        encoders.nothing  # noqa: B018
