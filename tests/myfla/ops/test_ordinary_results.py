"""Results of ops are ordinary tensors, small and large alike."""

import io

import pytest
import torch
import torch.nn.functional as F

import myfla.ops.gated_delta_rule as gated
import myfla.ops.generalized_delta_rule as dplr
import myfla.ops.rwkv7 as rwkv7
from myfla.testing import cases

SMALL, LARGE = (1, 3, 1, 4), (2, 160, 4, 32)
OPS = {
    "chunk gated": gated.chunk_gated_delta_rule,
    "recurrent gated": gated.fused_recurrent_gated_delta_rule,
    "chunk dplr": dplr.chunk_dplr_delta_rule,
    "recurrent dplr": dplr.fused_recurrent_dplr_delta_rule,
    "chunk rwkv7": rwkv7.chunk_rwkv7,
}


def inputs(op, shape, grad=True):
    """Arguments by position, and how gated they are."""
    vectors = 3 if "gated" in op else 6
    x = [0.2 * torch.randn(shape) for _ in range(vectors)]
    names = ["q", "k", "v"] if "gated" in op else ["q", "k", "v", "a", "b", "gk"]
    if op == "chunk rwkv7":
        names = ["r", "k", "v", "a", "b", "w"]
    given = dict(zip(names, x))
    if "gated" in op:
        given.update(g=-torch.rand(shape[:3]), beta=torch.rand(shape[:3]))
    else:
        given[names[-1]] = -given[names[-1]].abs()
    return {name: x.requires_grad_(grad) for name, x in given.items()}


def run(op, shape, grad=True, **more):
    given = inputs(op, shape, grad)
    return OPS[op](**given, output_final_state=True, **more), given


IN_PLACE = {
    "mul_": lambda o: o.mul_(2),
    "silu": lambda o: F.silu(o, inplace=True),
    "dropout": lambda o: F.dropout(o, 0.5, inplace=True),
    "slice": lambda o: o.__setitem__((slice(None), 0), 0.0),
    "masked_fill_": lambda o: o.masked_fill_(o > 0, 0.0),
}


@cases(op=list(OPS), shape=[SMALL, LARGE], write=list(IN_PLACE), which=[0, 1])
def test_a_result_may_be_written_under_autograd(op, shape, write, which):
    results, given = run(op, shape)
    torch.manual_seed(1)
    IN_PLACE[write](results[which])
    results[which].sum().backward()
    again = {name: x.detach().clone().requires_grad_() for name, x in given.items()}
    other = OPS[op](**again, output_final_state=True)
    torch.manual_seed(1)
    changed = other[which].clone()
    IN_PLACE[write](changed)
    changed.sum().backward()
    for name, x in given.items():
        if x.grad is None:
            assert again[name].grad is None
        else:
            assert torch.equal(x.grad, again[name].grad), name


@cases(op=list(OPS), shape=[SMALL, LARGE], which=[0, 1])
def test_a_result_has_memory_of_its_own_and_may_be_resized(op, shape, which):
    x = run(op, shape, grad=False)[0][which]
    assert x._base is None and x.is_contiguous() and x.storage_offset() == 0
    storage = x.untyped_storage() if hasattr(x, "untyped_storage") else x.storage()
    assert len(storage) in (x.numel(), x.numel() * x.element_size())
    x.resize_(2 * x.numel())
    storage.resize_(0)


@cases(op=["chunk gated", "chunk dplr", "chunk rwkv7"], shape=[SMALL, LARGE])
def test_gradients_are_ordinary_too(op, shape):
    (o, final), given = run(op, shape)
    for x in torch.autograd.grad((o.sum(), final.sum()), list(given.values())):
        assert x._base is None and x.is_contiguous()
        x.resize_(0)


@cases(op=["chunk gated", "chunk dplr"])
def test_what_is_saved_is_written_once_and_read_back_right(op):
    files = []

    def pack(x):
        file = io.BytesIO()
        torch.save(x, file)
        files.append((file, x.numel() * x.element_size()))
        return file

    def unpack(file):
        file.seek(0)
        return torch.load(file)

    given = inputs(op, LARGE)
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        o, _ = OPS[op](**given)
    got = torch.autograd.grad(o.sum(), list(given.values()))
    assert sum(len(file.getvalue()) for file, _ in files) < 1.2 * sum(size for _, size in files) + 2000 * len(files)
    o, _ = OPS[op](**given)
    assert all(map(torch.equal, got, torch.autograd.grad(o.sum(), list(given.values()))))


class Labelled(torch.Tensor):
    """A subclass that says nothing: every operation gives one again."""


@cases(op=list(OPS), shape=[SMALL, LARGE])
def test_a_subclass_comes_back_with_the_same_numbers(op, shape):
    given = inputs(op, shape, grad=False)
    how = dict(output_final_state=True, backend="torch")  # the compiled kernels take no subclass, and round otherwise
    o, final = OPS[op](**{name: x.as_subclass(Labelled) for name, x in given.items()}, **how)
    want = OPS[op](**given, **how)
    assert type(o) is type(final) is Labelled
    assert torch.equal(o.as_subclass(torch.Tensor), want[0]) and torch.equal(final.as_subclass(torch.Tensor), want[1])


@cases(op=list(OPS), shape=[SMALL, LARGE])
def test_a_fake_call_leaves_nothing_behind(op, shape):
    fakes = pytest.importorskip("torch._subclasses.fake_tensor")
    want = run(op, shape, grad=False)[1]
    o, final = OPS[op](**want, output_final_state=True)
    with fakes.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = {name: mode.from_tensor(x) for name, x in want.items()}
        seen, _ = OPS[op](**fake, output_final_state=True)
        assert isinstance(seen, fakes.FakeTensor) and seen.shape == o.shape
    got = OPS[op](**want, output_final_state=True)
    assert type(got[0]) is torch.Tensor and torch.equal(got[0], o) and torch.equal(got[1], final)
