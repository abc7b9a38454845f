"""Memory of large results: never shared, taken up again, bounded, and without page faults in a warm call."""

import gc
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from myfla.testing import cases
from myfla.utils import large


@pytest.fixture
def empty(large_from_one_byte):
    def one(*shape, dtype=torch.float32):
        return large.empty_large(*shape, dtype=dtype, device="cpu")

    return one


LOOKS = {
    "the tensor": lambda t: t,
    "a view": lambda t: t[1:, :1],
    "an array": lambda t: t.numpy(),
    "a detached view": lambda t: t.detach().view(-1)[3:],
    "another shape": lambda t: t.transpose(0, 1),
}


@cases(look=list(LOOKS))
def test_memory_that_somebody_looks_at_is_not_used_again(look, empty):
    first = empty(4, 5).fill_(7)
    place, eye = first.data_ptr(), LOOKS[look](first)
    del first
    gc.collect()
    second = empty(4, 5).fill_(1)
    assert second.data_ptr() != place and (torch.as_tensor(eye) == 7).all()
    del eye
    gc.collect()
    assert empty(4, 5).data_ptr() == place


@cases(dtype=[torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.uint8], shape=[(3,), (2, 7, 5)])
def test_a_large_tensor_is_as_an_ordinary_one(dtype, shape, empty):
    found, usual = empty(*shape, dtype=dtype), torch.empty(shape, dtype=dtype)
    assert found.shape == usual.shape and found.dtype == usual.dtype and found.is_contiguous() and found.is_leaf
    assert found.data_ptr() % 64 == 0
    assert torch.equal(found.fill_(3), torch.full(shape, 3, dtype=dtype))


def test_tensors_do_not_all_begin_at_the_same_place_of_a_page(empty):
    held = [empty(1024) for _ in range(32)]
    assert len({x.data_ptr() % large.PAGE for x in held}) == len(held)


def test_lengths_that_vary_meet_the_same_memory_again(empty):
    held = {empty(n).data_ptr() // large.PAGE for n in range(100_000, 101_000, 100)}
    assert len(held) == 1


@pytest.mark.parametrize("size", [4096, 4097, 1 << 17, (1 << 17) + 1, 12_345_678, (1 << 31) + 5])
def test_a_mapping_is_at_most_an_eighth_too_large(size):
    assert size <= large._class_of(size) <= size * 1.125


def test_idle_memory_is_bounded(empty, monkeypatch):
    monkeypatch.setattr(large, "KEPT", 3 << 20)
    held = [empty(n << 20, dtype=torch.uint8) for n in (1, 2, 1, 4)]
    while held:
        del held[0]
        gc.collect()
        assert large._idle_bytes() <= 3 << 20


def test_what_was_not_used_for_longest_goes_first(empty, monkeypatch):
    monkeypatch.setattr(large, "KEPT", 5 << 20)
    for size in (1 << 20, 2 << 20, 1 << 20):  # 1 MB again after 2 MB
        empty(size, dtype=torch.uint8)
    kept = large._class_of((1 << 20) + large.PAGE), large._class_of((2 << 20) + large.PAGE)
    empty(3 << 20, dtype=torch.uint8)
    assert [len(large._idle.get(size, ())) for size in kept] == [1, 0]


@pytest.mark.parametrize("problem", ["enough mappings", "no mapping"])
def test_without_a_mapping_there_is_ordinary_memory(problem, empty, monkeypatch):
    if problem == "enough mappings":
        monkeypatch.setattr(large, "MOST", 0)
    else:
        monkeypatch.setattr(large._Mapping, "__new__", _refuse)
    assert torch.equal(empty(3, 4).fill_(2), torch.full((3, 4), 2.0)) and not large._idle


def _refuse(*args, **kwargs):
    raise OSError(12, "Cannot allocate memory")


FAULTS = """
import resource, statistics, sys
sys.path.insert(0, sys.argv[1])
import torch
from myfla.ops.gated_delta_rule import chunk_gated_delta_rule as gated
from myfla.ops.rwkv7 import chunk_rwkv7 as rwkv7

torch.set_num_threads(1)
family, work = sys.argv[2:]
B, T, H, D = 2, 512, 4, 64
vectors = [torch.randn(B, T, H, D) * D**-0.5 for _ in range(3 if family == "gated" else 6)]
x = vectors + [-torch.rand(B, T, H), torch.rand(B, T, H)] if family == "gated" else vectors
if family == "rwkv7":
    x[1] = -torch.rand(B, T, H, D)
do, op = torch.randn(B, T, H, D), gated if family == "gated" else rwkv7
for leaf in x:
    leaf.requires_grad_(work == "training")

def call():
    o = op(*x)[0]
    return torch.autograd.grad(o, x, do) if work == "training" else o

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    call()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for _ in range(3):
    call()
print(statistics.median(faults() for _ in range(9)))
"""


@cases(family=["gated", "rwkv7"], work=["inference", "training"])
def test_a_warm_call_touches_no_new_memory(family, work):
    if large._ADVICE is None or platform.libc_ver()[0] != "glibc":
        pytest.skip("needs Linux with glibc, which is told below to map everything large anew")
    libraries = str(Path(large.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, libraries, family, work], check=True, stdout=subprocess.PIPE,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": str(large.LEAST)},
    )  # fmt: skip
    megabyte = (1 << 20) // large.PAGE  # every input, output and gradient is as large
    assert float(done.stdout) < megabyte / 4
