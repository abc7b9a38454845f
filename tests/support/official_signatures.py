"""Records the official library's public signatures, for `tests/house/test_official_interface.py`.

    python tests/support/official_signatures.py     # where fla-core and flash-linear-attention 0.6.0 are installed

Written are, for every module of this library that the official one has too, under the same path, its functions and
classes with their arguments, and the classes' methods. Nothing of the official code is run but its imports.
"""

import importlib
import inspect
import json
import pkgutil
import sys
import warnings
from pathlib import Path

GOLDEN = Path(__file__).resolve().parents[1] / "myfla" / "golden" / "official_signatures.json"
OURS = "myfla"
OFFICIAL = "fla"
ROOTS = ("", "layers", "models", "ops")
"""Packages that show what their modules define, of every family: of these the names are enough."""


def module_names(package=OURS):
    """Every module of a package, by dotted path behind the package's name; the package itself is ``""``."""
    root = importlib.import_module(package)
    inside = pkgutil.walk_packages(root.__path__, f"{package}.", onerror=lambda name: None)
    return sorted(["", *(info.name[len(package) + 1 :] for info in inside)])


def file_paths(package=OFFICIAL):
    """Every file of a package that holds a module, by dotted path, whether or not it can be imported here."""
    root = Path(importlib.import_module(package).__file__).parent
    files = (path.relative_to(root).with_suffix("") for path in root.rglob("*.py"))
    return sorted(".".join(part for part in path.parts if part != "__init__") for path in files)


def arguments(function):
    """``[[name, kind, default], ...]``; defaults as text, None where there is none. None if it cannot be told."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    return [
        [p.name, p.kind.name.lower(), None if p.default is p.empty else repr(p.default)] for p in parameters
        if p.name not in ("self", "cls")
    ]


def members(kind, package):
    """Public methods, properties and plain attributes that the class has from its own package, and its constructor."""
    found = {}
    for base in reversed(kind.__mro__):
        if not (base.__module__ or "").startswith(package):
            continue
        for name, value in vars(base).items():
            if name.startswith("_") and name != "__init__":
                continue
            if isinstance(value, (staticmethod, classmethod)):
                value = value.__func__
            if isinstance(value, property):
                found[name] = "property"
            elif callable(value) and not isinstance(value, type):
                found[name] = arguments(value)
            else:
                found[name] = "attribute"
    return found


def describe(value, package):
    """A function's arguments, or a class's members; None for anything else."""
    if inspect.isclass(value):
        return {"members": members(value, package)}
    if callable(value):
        return {"arguments": arguments(value)}
    return None


def names_of(module, package):
    """What a user may import from a module: all that it says it exports, else what it has of the package."""
    named = getattr(module, "__all__", None)
    if named is None:
        named = [name for name, value in vars(module).items()
                 if not name.startswith("_") and (getattr(value, "__module__", None) or "").startswith(package)]
    return sorted(set(named))


def interface(package, paths):
    """Modules by path, and what their names stand for by where it was defined.

    Returns:
        ``{"modules": {path: {"exports": whether it says so, "names": {name: place}}}, "definitions": {place: what}}``.
    """
    modules, definitions = {}, {}
    for path in paths:
        try:
            module = importlib.import_module(f"{package}.{path}" if path else package)
        except ImportError:
            continue
        names = {}
        for name in names_of(module, package):
            value = getattr(module, name, None)
            what = describe(value, package)
            if what is None or not (value.__module__ or "").startswith(package):
                continue
            place = f"{value.__module__}.{getattr(value, '__qualname__', name)}"[len(package) + 1 :]
            names[name] = place
            if path not in ROOTS:
                definitions[place] = what
        modules[path] = {"exports": hasattr(module, "__all__"), "names": names}
    return {"modules": modules, "definitions": definitions}


def main():
    warnings.simplefilter("ignore")
    sys.path[:0] = [str(GOLDEN.parents[3] / "libs")]
    version = importlib.import_module(OFFICIAL).__version__
    recorded = {"version": version, "paths": file_paths(), **interface(OFFICIAL, module_names())}
    GOLDEN.write_text(json.dumps(recorded, indent=None, separators=(",", ":"), sort_keys=True) + "\n", encoding="utf-8")
    count, modules = len(recorded["definitions"]), len(recorded["modules"])
    print(f"{GOLDEN.name}: {count} functions and classes of {modules} modules")


if __name__ == "__main__":
    main()
