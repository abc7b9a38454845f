"""Whether there are compiled kernels, which ones, and which calls use them."""

import os
import shutil

import pytest
import torch

import native_build
from myfla.testing import cases
from myfla.utils import native as door


@cases(level=["base", "avx2", "avx512"])
def test_a_level_is_had_or_the_best_below_it(native, level):
    order = ["base", "avx2", "avx512"]
    best = native.library.set_level(None)
    assert native.library.set_level(level) == min(level, best, key=order.index)
    assert native.library.set_level(None) == best


def test_plain_tensors_get_the_kernels(native):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert door.native(torch.zeros(2, dtype=dtype), None, torch.nn.Parameter(torch.zeros(1))) is native
        assert door.why_not_native(torch.zeros(2, dtype=dtype), None) is None


def flags_of(x):
    """The kernel's flags of the memory in the middle of a tensor."""
    inside, at = False, x.data_ptr() + x.numel() * x.element_size() // 2
    with open("/proc/self/smaps") as lines:
        for line in lines:
            first = line.split()[0]
            if "-" in first and not first.endswith(":"):
                begin, end = (int(part, 16) for part in first.split("-"))
                inside = begin <= at < end
            elif inside and first == "VmFlags:":
                return line.split()[1:]
    raise AssertionError("not mapped")


def results_of(native, tokens):
    rules, x, one = native.rules, torch.ones(1, tokens, 1, 64), torch.ones(1, tokens, 1, 1)
    inputs = rules.Inputs(one, one, x, -one[..., 0], one[..., 0])
    o, _, kept = rules.forward(rules.Rule(rules.GATED, 1.0), inputs, keep=True)
    dv = rules.backward(rules.Rule(rules.GATED, 1.0), inputs, None, kept, x, None)[0][2]
    y = native.norms.norm_forward(x, x, None, None, 1e-5, 1, False, "silu", x.dtype, keep=False)[0]
    z = native.convolution.conv_forward(x[:, :, 0], torch.ones(64, 4))[0]
    return o, kept, dv, y, z


@pytest.mark.skipif(not os.path.exists("/sys/kernel/mm/transparent_hugepage"), reason="no huge pages here")
def test_large_results_lie_in_huge_pages(native):
    for result in results_of(native, 1 << 17):
        assert "hg" in flags_of(result)


def test_small_results_lie_where_they_may(native, monkeypatch):
    monkeypatch.setattr(native.library, "_huge_pages", lambda at, size: pytest.fail(f"asked for {size} bytes"))
    assert len(results_of(native, 1 << 10)) == 5


class Strange(torch.Tensor):
    """A subclass."""


@cases(what=["float64", "int64", "meta", "subclass", "sparse", "negative view"])
def test_other_tensors_do_not_and_are_told_why(native, what):
    x, word = {
        "float64": (torch.zeros(2, dtype=torch.float64), "torch.float64"),
        "int64": (torch.zeros(2, dtype=torch.int64), "torch.int64"),
        "meta": (torch.zeros(2, device="meta"), "meta"),
        "subclass": (torch.zeros(2).as_subclass(Strange), "Strange"),
        "sparse": (torch.zeros(2, 2).to_sparse(), "sparse_coo"),
        "negative view": (torch.zeros(2, dtype=torch.complex64).conj().imag, "Tensor"),
    }[what]
    assert door.native(torch.zeros(1), x) is None
    assert word in door.why_not_native(torch.zeros(1), x)


@cases(who=["torch.func", "forward mode", "jit", "dispatch mode"])
def test_who_watches_plain_operations_sees_them(native, who):
    seen = []

    def look(x):
        seen.append(door.why_not_native(x))
        assert door.native(x) is None
        return x * 2

    x, word = torch.ones(2), {"torch.func": "torch.func", "forward mode": "forward-mode", "jit": "records",
                              "dispatch mode": "dispatch mode"}[who]  # fmt: skip
    if who == "torch.func":
        pytest.importorskip("torch.func").vmap(look)(x)
    elif who == "forward mode":
        with torch.autograd.forward_ad.dual_level():
            look(torch.autograd.forward_ad.make_dual(x, x))
    elif who == "jit":
        torch.jit.trace(look, (x,), check_trace=False)
    else:
        if door._modes is None:
            pytest.skip("came with PyTorch 2.0")
        from torch.utils._python_dispatch import TorchDispatchMode

        class Watch(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                return func(*args, **(kwargs or {}))

        with Watch():
            look(x)
    assert seen and all(word in reason for reason in seen)


def test_another_interface_is_left_alone(kernels, monkeypatch):
    monkeypatch.setattr(door, "INTERFACE", -1)
    package, reason = door._installed.__wrapped__()
    assert package is None and "interface" in reason and "-1" in reason


def test_without_the_distribution_the_reason_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(door.importlib.util, "find_spec", lambda name: None)
    assert "pip install myfla-native" in door._installed.__wrapped__()[1]


def test_a_library_that_does_not_load_is_a_reason(kernels, monkeypatch):
    def fails(name):
        raise OSError("wrong ELF class")

    monkeypatch.setattr(door.importlib, "import_module", fails)
    assert "wrong ELF class" in door._installed.__wrapped__()[1]


def test_the_build_for_tests_is_named_after_all_that_makes_it(tmp_path, monkeypatch):
    tools = native_build.toolchain()
    if tools.system_compiler() is None:
        pytest.skip("there is no C compiler here")

    def name():
        return native_build.package_name(tools.fingerprint(), tools.PACKAGE)

    for part in ("SOURCES", "PACKAGE"):
        own = shutil.copytree(getattr(tools, part), tmp_path / part)
        monkeypatch.setattr(tools, part, own)
    found = [name(), name()]
    for path in (tools.SOURCES / "common" / "mn.h", tools.PACKAGE / "rules.py"):
        path.write_text(path.read_text() + "\n")
        found.append(name())
    monkeypatch.setenv("CC", f"{tools.system_compiler()[0]} -O1")
    found.append(name())
    assert found[0] == found[1] and len(set(found)) == 4
