"""Valid calls, ways to spoil them, and the results that a spoilt call may have.

`fuzz_subjects.SUBJECTS` lists every public function and module that takes tensors: a right call of each. A fuzzer
changes some arguments; then the call must give what the same values give in float64, or be refused by an error that
names who was called.
"""

import math
import re

import torch
from hypothesis import strategies as st

from fuzz_subjects import SUBJECTS

#: What a refusal looks like: who, then the matter; ``Class.method`` and ``function(argument)`` are fine.
NAMED = re.compile(r"^[A-Za-z_][\w.]*(\([^)]*\))?: ")
ERRORS = (ValueError, TypeError, NotImplementedError)


DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool,
          torch.complex64, torch.uint8)
ODD = (None, 0, -1, 3, 0.5, float("nan"), float("inf"), "text", True, [1, 2], (), {}, 10**30)


KINDS = ("dtype", "rank", "size", "empty", "strided", "grad", "odd", "meta", "values", "mirror")


@st.composite
def spoilt(draw, value):
    """Another value for an argument: often near the right one, at times nothing like it."""
    if not isinstance(value, torch.Tensor):
        return draw(st.sampled_from(ODD))
    kind = draw(st.sampled_from(KINDS))
    if kind == "dtype":
        return value.to(draw(st.sampled_from(DTYPES)))
    if kind == "rank":
        return draw(st.sampled_from([value[0], value[None], value[..., None], value.flatten(), value.sum()]))
    axis = draw(st.integers(0, value.dim() - 1))
    if kind == "size":
        return draw(st.sampled_from([torch.cat([value, value], axis), value.narrow(axis, 0, 1)]))
    if kind == "empty":
        return value.narrow(axis, 0, 0)
    if kind == "strided":
        return torch.stack([value, value], -1)[..., 0]
    if kind == "grad":
        return value.clone().requires_grad_() if value.is_floating_point() else value
    if kind == "meta":
        return value.to("meta")
    if kind == "mirror":
        return value.flip(axis)
    if kind == "values":
        filler = draw(st.sampled_from([0, 1, -1, 7, 100]))
        return torch.full_like(value, filler)
    return draw(st.sampled_from(ODD))


@st.composite
def calls(draw, name):
    """Arguments of a call with up to three of them spoilt."""
    arguments = SUBJECTS[name].arguments()
    for key in draw(st.lists(st.sampled_from(sorted(arguments)), max_size=3, unique=True)):
        arguments[key] = draw(spoilt(arguments[key]))
    return arguments


def tensors(tree):
    """All tensors of a result."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    return [t for part in tree for t in tensors(part)] if isinstance(tree, (tuple, list)) else []


def widened(tree):
    """Float64, contiguous, without gradients."""
    if isinstance(tree, torch.Tensor):
        wide = tree.detach().clone(memory_format=torch.contiguous_format)
        return wide.double() if wide.is_floating_point() else wide
    return tuple(map(widened, tree)) if isinstance(tree, tuple) else tree


def _short(value):
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {tuple(value.shape)} {value.device.type}"
    return list(map(_short, value)) if isinstance(value, (tuple, list)) else value


def judge(name, arguments):
    """Run a call. Returns ``"refused"`` or ``"right"``; anything else is an AssertionError that shows the call."""
    shown = {key: _short(value) for key, value in arguments.items()}
    subject = SUBJECTS[name]
    try:
        got = tensors(subject.make(torch.float32)(**arguments))
    except ERRORS as problem:
        assert NAMED.match(str(problem)), f"{name} {shown}: {type(problem).__name__} does not say who: {problem}"
        return "refused"
    except Exception as problem:
        raise AssertionError(f"{name} {shown}: {type(problem).__name__}: {problem}") from problem
    if any(t.is_meta for t in got):
        return "right"
    wide = {key: widened(value) for key, value in arguments.items()}
    want = tensors(subject.make(torch.float64)(**wide))
    assert len(got) == len(want), f"{name} {shown}"
    swayed = None  # results of the wide and of the narrow call with other roundings
    for i, (a, b) in enumerate(zip(got, want)):
        assert a.shape == b.shape, f"{name} {shown}: {a.shape} {b.shape}"
        if not a.is_floating_point():
            assert torch.equal(a, b), f"{name} {shown}"
        elif not _near(a, b, arguments):
            swayed = swayed or [tensors(subject.make(dtype)(**_sway(values)))
                                for dtype, values in ((torch.float64, wide), (torch.float32, arguments))]
            sway = max(float((moved[i] - result).abs().max()) for moved, result in zip(swayed, (b, a)))
            assert _near(a, b, arguments, sway), f"{name} {shown}"
    return "right"


def _sway(tree):
    """Floating point values moved by at most two roundings of float32.

    What the result in float64 does then is the condition of its inputs. What the result in float32 does is the size of
    its own roundings, where large terms cancel whatever the inputs are: a normalised row times equal weights.
    """
    if isinstance(tree, dict):
        return {key: _sway(value) for key, value in tree.items()}
    if isinstance(tree, torch.Tensor) and tree.is_floating_point():
        generator = torch.Generator().manual_seed(0)
        signs = torch.randint(0, 2, tree.shape, generator=generator).to(tree) * 2 - 1
        return tree * (1 + 2**-23 * signs)
    return tuple(map(_sway, tree)) if isinstance(tree, tuple) else tree


def _near(a, b, arguments, sway=0.0):
    """Whether a result is what it should be; ``sway`` is how far rounding the inputs moves it."""
    halves = [t for t in tensors(list(arguments.values())) if t.dtype in (torch.float16, torch.bfloat16)]
    bound = 0.1 if halves or a.dtype in (torch.float16, torch.bfloat16) else 1e-4
    a = a.detach().double()
    if not bool(torch.isfinite(b).all()) or (b.numel() and float(b.abs().max()) > 1e4):
        return True  # beyond what the narrower formats hold
    scale = max(1.0, float(b.norm()) / math.sqrt(max(1, b.numel()))) if b.numel() else 1.0
    if not bool(torch.isfinite(a).all()):
        return False
    return not b.numel() or float((a - b).abs().max()) <= 10 * (bound * scale + sway)
