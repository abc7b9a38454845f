"""The public interface changes only on purpose, and every name is documented."""

import inspect
import re

from app_runs import run_python
from myfla.testing import cases
from surface import FILE, ROOT, call, ours, public

SCRIPT = ROOT / "tests" / "support" / "surface.py"
# Names that are shown in the example of the name they belong to.
PART_OF = {
    "EncoderOutput": "Encoder", "StackCall": "PreNormBlock", "StrategyInfo": "available_strategies",
    "PluginError": "get_strategy", "UnknownEncoderError": "get_strategy",
    "NotFiniteError": "check_finite", "InputError": "InputSchema",
}  # fmt: skip


def test_the_surface_is_the_one_written_down():
    """Regenerate with ``make surface`` and read the diff: it is what users will notice."""
    # In a process of its own: other tests register encoders of their own.
    done = run_python(ROOT, str(SCRIPT), "--print")
    assert done.returncode == 0, done.stderr
    want, got = FILE.read_text(encoding="utf-8"), done.stdout
    before, after = set(want.splitlines()), set(got.splitlines())
    assert want == got, f"gone: {before - after}, new: {after - before}; if that is meant, run: make surface"


def test_the_surface_notices_renamed_and_reordered_arguments():
    def before(a, b=1, *, c=None):
        pass

    def after(b, a=1, *, c=None):
        pass

    before.__module__ = after.__module__ = "myfla.test"
    assert call(before) == "(a, b=, *, c=)" and call(after) == "(b, a=, *, c=)"


@cases(module=sorted({module for module, _, _ in public()}))
def test_every_public_name_is_documented_with_an_example(module):
    """The examples themselves run in ``test_examples.py``."""
    missing = []
    for place, name, thing in public():
        if place == module and ours(thing) and name not in PART_OF:
            text = inspect.getdoc(thing) or ""
            if inspect.isclass(thing) and thing.__doc__ is None:
                text = ""  # getdoc shows the parent's
            if ">>>" not in text:
                missing.append(name)
    assert not missing, f"{module}: no runnable example in the docstring of {', '.join(missing)}"


def documented(thing, text):
    """What of a function's arguments and result a text leaves out; it may refer to another name for its arguments."""
    call = inspect.signature(thing)
    starred = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = [name for name, parameter in call.parameters.items()
             if name not in ("self", "cls", "ctx") and parameter.kind not in starred]
    if re.search(r"[Aa]rguments[^.]*`", " ".join(text.split())):
        return []
    return [name for name in named if not re.search(rf"\b{name}\b", text)]


@cases(module=sorted({module for module, _, _ in public()}))
def test_every_argument_and_result_of_a_public_name_is_documented(module):
    """Of functions, of classes, and of the public methods of classes."""
    missing = []
    for place, name, thing in public():
        if place != module or not ours(thing) or (inspect.isclass(thing) and issubclass(thing, BaseException)):
            continue
        text = inspect.getdoc(thing) or ""
        if inspect.isclass(thing):
            missing += [f"{name}({argument})" for argument in documented(thing, text)]
            for method, value in vars(thing).items():
                plain = getattr(value, "__func__", value.fget if isinstance(value, property) else value)
                if not method.startswith("_") and inspect.isfunction(plain):
                    own = plain.__doc__ or ""
                    gone = documented(plain, own + text)
                    missing += [f"{name}.{method}"] * (not own) + [f"{name}.{method}({argument})" for argument in gone]
        elif inspect.isfunction(thing):
            missing += [f"{name}({argument})" for argument in documented(thing, text)]
            if inspect.signature(thing).return_annotation not in (None, "None") and "Returns:" not in text:
                missing.append(f"{name} -> ?")
    assert not missing, f"{module}: not in the docstrings: {', '.join(missing)}"


def test_every_hook_says_what_it_is_called_with():
    from encoders import hookspecs

    text = inspect.getdoc(hookspecs.register_encoders)
    for part in ("Args:", "register:", "strategy", "config", "preset", "Example"):
        assert part in text
