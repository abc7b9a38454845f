"""The public surface as text, one line a name: what a user can import, implement, or write on the command line.

    python tests/support/surface.py           write tests/house/surface.txt anew (make surface)
    python tests/support/surface.py --print   show it
"""

import inspect
import pkgutil
import sys
from dataclasses import MISSING, fields
from importlib import import_module
from pathlib import Path
from typing import Generic

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "tests" / "house" / "surface.txt"
HEAD = "# The public surface. A change here is a change for users. To write it anew: make surface\n"
# Modules with a public life of their own, beside all packages of myfla.
MODULES = ("myfla.testing", "myfla.layers.utils", "myfla.models.utils", "myfla.integrations.transformers")


def public():
    """``(module, name, object)`` of everything that is public in myfla and encoders."""
    import myfla

    packages = [found.name for found in pkgutil.walk_packages(myfla.__path__, "myfla.") if found.ispkg]
    for module in sorted([*packages, *MODULES]):
        loaded = import_module(module)
        for name in sorted(getattr(loaded, "__all__", ())):
            yield module, name, getattr(loaded, name)
    import encoders

    for name in encoders.__all__:
        yield "encoders", name, getattr(encoders, name)


def ours(thing):
    """Whether the code is this project's: what comes from elsewhere changes with its version."""
    module = getattr(thing, "__module__", "")  # plain stands in for scikit-learn, where that is not installed
    return module.split(".")[0] in ("myfla", "encoders") and module != "encoders.estimators.plain"


def call(thing):
    """``(a, b=, *, c=)``: the names and order of the arguments; ``=`` marks those that have a default."""
    if not callable(thing) or not ours(thing) or (inspect.isclass(thing) and issubclass(thing, Exception)):
        return ""
    if getattr(thing, "__new__", None) is getattr(Generic, "__new__") is not object.__new__:
        return "()"  # of Python 3.8's Generic, which takes anything
    words, star = [], False
    for parameter in inspect.signature(thing).parameters.values():
        if parameter.kind == parameter.KEYWORD_ONLY and not star:
            words.append("*")
            star = True
        mark = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(parameter.kind, "")
        star = star or mark == "*"
        words.append(mark + parameter.name + ("" if parameter.default is parameter.empty else "="))
    return f"({', '.join(words)})"


def methods(kind):
    """Public methods and properties that a class of ours defines itself or inherits from a class of ours."""
    found = {}
    for base in reversed(kind.__mro__):
        if ours(base):
            found.update((name, value) for name, value in vars(base).items() if not name.startswith("_"))
    for name, value in sorted(found.items()):
        plain = value.__func__ if isinstance(value, (staticmethod, classmethod)) else value
        if inspect.isfunction(plain):
            yield name + call(plain)
        elif isinstance(value, property):
            yield name


def lines():
    """The whole surface; what several modules export is described once, where its path is shortest."""
    home = {}
    for module, name, thing in sorted(public(), key=lambda row: (row[0].count("."), row[0] == "myfla.models.utils")):
        path = f"{module}.{name}"
        if id(thing) in home:
            yield f"{path} = {home[id(thing)]}"
            continue
        home[id(thing)] = path
        yield path + call(thing)
        if inspect.isclass(thing) and not issubclass(thing, tuple):
            for method in methods(thing):
                yield f"{module}.{name}.{method}"
    from encoders import hookspecs

    for name, thing in sorted(vars(hookspecs).items()):
        if getattr(thing, f"{hookspecs.GROUP}_spec", None) is not None:
            yield f"hook {name}{call(thing)}"
    yield from command_line()


def command_line():
    """Groups, their choices, and every setting of every schema."""
    from hydra.core.config_store import ConfigStore

    from cfg.app import register_configs
    from cfg.paths import conf_dir

    for path in sorted(conf_dir().rglob("*.yaml")):
        group = path.relative_to(conf_dir()).parent.as_posix()
        if group not in (".", "hydra/help"):
            yield f"choice {group}={path.stem}"
    register_configs()
    store = ConfigStore.instance().repo
    for group in sorted(name for name in store if isinstance(store[name], dict) and "schema" in store[name]):
        for file, node in sorted(store[group]["schema"].items()):
            for key in sorted(node.node):
                yield f"setting {group}={file.rsplit('.', 1)[0]} {group}.{key}"
    from cfg.app import AppConfig

    for field in sorted(fields(AppConfig), key=lambda field: field.name):
        if field.default is not MISSING and field.default != "???":
            yield f"setting {field.name}"


def main():
    sys.path[:0] = [str(ROOT / "src"), str(ROOT / "libs")]
    text = HEAD + "".join(line + "\n" for line in lines())
    if "--print" in sys.argv[1:]:
        print(text, end="")
        return
    FILE.write_text(text, encoding="utf-8")
    print(f"wrote {FILE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
