"""Plugins that were never installed, good and bad, and distributions as `pip` leaves them."""

from encoders import hookimpl
from encoders.plugins import Plugin
from tiny_encoder import TinyConfig, TinyStrategy


def hook(body):
    """A plugin object whose hook is ``body(register)``."""

    class Hooks:
        @hookimpl
        def register_encoders(self, register):
            body(register)

    return Hooks()


def plugin(name, body=None, load=None, version="1.0"):
    """A plugin ``<name>-dist <version>`` that does ``body(register)`` in its hook, or is loaded by ``load``."""
    return Plugin(name, f"{name}-dist", version, load or (lambda: hook(body)))


def tiny(name="tiny", strategy=TinyStrategy, config=TinyConfig):
    return plugin(name, lambda register: register("tiny", strategy=strategy, config=config))


def failing_import():
    raise ModuleNotFoundError("No module named 'nowhere'")


def distribution(folder, name, version, entries):
    """What `pip` leaves behind for a package with entry points."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text("[encoders]\n" + "\n".join(f"{k} = {v}" for k, v in entries.items()) + "\n")
