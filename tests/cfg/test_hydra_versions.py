"""Hydra 1.3 and 1.4, OmegaConf 2.3 and 2.4: the options that each gets, and that neither warns."""

import os
import subprocess
import sys
import types

import pytest

pytest.importorskip("hydra")

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from app_runs import ROOT
from cfg import hydra_versions
from myfla.testing import cases

QUIET = """
import warnings
warnings.simplefilter("error")
from cfg.app import register_configs
from cfg.hydra_versions import hydra_main_options
import hydra
for _ in range(2):
    register_configs()
hydra.main(config_path=None, config_name="app_schema", **hydra_main_options(["app.sweep.SweepTable"]))
print("quiet")
"""


def test_registering_twice_gives_no_warning_of_the_installed_version():
    path = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "libs")])}
    done = subprocess.run([sys.executable, "-c", QUIET], env=path, cwd=str(ROOT), stdout=subprocess.PIPE, check=True)
    assert done.stdout.strip() == b"quiet"


def test_what_is_stored_last_is_there_and_a_resolver_may_be_replaced():
    for value in (1, 2):
        hydra_versions.store_config(name="hydra_versions_test", node={"x": value}, provider="test")
        hydra_versions.register_resolver("hydra_versions_test", lambda given, value=value: given * 10 + value)
    assert ConfigStore.instance().load("hydra_versions_test.yaml").node.x == 2
    assert OmegaConf.create({"x": "${hydra_versions_test:4}"}).x == 42


@cases(new=[False, True])
def test_each_version_is_asked_in_its_words(new, monkeypatch):
    monkeypatch.setattr(hydra_versions, "_TRUSTS", new)
    got = hydra_versions.hydra_main_options(["a.B"])
    assert got == ({"execution_whitelist": ["a.B"]} if new else {"version_base": "1.3"})
    assert hydra_versions.version_base() == ({} if new else {"version_base": "1.3"})
    monkeypatch.setattr(hydra_versions, "_REPLACES", new)
    seen = []
    monkeypatch.setattr(hydra_versions, "ConfigStore", types.SimpleNamespace(
        instance=lambda: types.SimpleNamespace(store=lambda **given: seen.append(given))))
    hydra_versions.store_config("n", {}, provider="p")
    assert seen == [{"name": "n", "node": {}, "group": None, "provider": "p", **({"replace": True} if new else {})}]


@cases(new=[False, True])
def test_resolvers_are_registered_by_the_function_that_replaces(new, monkeypatch):
    seen = []

    class Old:
        register_resolver = staticmethod(lambda name, resolver: seen.append("legacy"))
        register_new_resolver = staticmethod(lambda name, resolver, replace: seen.append(("new", replace)))

    class New:
        register_resolver = staticmethod(lambda name, resolver, replace: seen.append(("current", replace)))

    monkeypatch.setattr(hydra_versions, "OmegaConf", New if new else Old)
    hydra_versions.register_resolver("x", str)
    assert seen == [("current" if new else "new", True)]
