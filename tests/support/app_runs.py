"""Running the application from tests: in a process of its own, or composed in this one."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Sequence

ROOT = Path(__file__).resolve().parents[2]
QUICK = ("experiment=quick", "trainer.max_epochs=2", "trainer.threads=1")


def run_app(folder: Path, *arguments: str, timeout: int = 300) -> "subprocess.CompletedProcess[str]":
    """``python -m app ...`` in ``folder``, from the bare checkout."""
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT / "libs")])
    environment = {**os.environ, "PYTHONPATH": paths, "COLUMNS": "120"}
    return run_python(folder, "-m", "app", *arguments, environment=environment, timeout=timeout)


def run_python(
    folder: Path, *arguments: str, environment: Any = None, timeout: int = 300
) -> "subprocess.CompletedProcess[str]":
    """This Python in ``folder``; output and exit code are the caller's to judge."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=str(folder), env=environment, timeout=timeout, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, encoding="utf-8",
    )


def compose_app(overrides: Sequence[str] = ()) -> Any:
    """The checked `AppConfig` for these overrides, as ``main`` makes it."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from app.sweep import register_sweep_table
    from cfg.app import register_configs
    from cfg.hydra_versions import version_base
    from cfg.paths import conf_dir

    register_configs()
    register_sweep_table()
    with initialize_config_dir(str(conf_dir()), **version_base()):
        return OmegaConf.to_object(compose("config", list(overrides)))
