"""The public interface changes only on purpose, and every name is documented."""

import inspect

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


def test_every_hook_says_what_it_is_called_with():
    from encoders import hookspecs

    text = inspect.getdoc(hookspecs.register_encoders)
    for part in ("Args:", "register:", "strategy", "config", "preset", "Example"):
        assert part in text
