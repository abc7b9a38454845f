"""All public functions and modules on a CUDA device: the numbers of the CPU, with and without gradients."""

import inspect

import pytest
import torch

from fuzz_family import draw
from fuzz_subjects import SUBJECTS
from myfla.models.utils import Cache
from myfla.testing import assert_close, cases

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

BOUND = 5e-5


@pytest.fixture(autouse=True)
def plain_cuda():
    """cuDNN's convolutions round to TF32, and its recurrent layers have no backward outside of training."""
    with torch.backends.cudnn.flags(enabled=False):
        yield


def to_cuda(value):
    """Tensors, and the modules that a function encloses."""
    if isinstance(value, (torch.Tensor, torch.nn.Module)):
        return value.to("cuda")
    if isinstance(value, (tuple, list)):
        return type(value)(to_cuda(part) for part in value)
    if isinstance(value, Cache):
        return value.to("cuda")
    if inspect.isfunction(value):
        for cell in value.__closure__ or ():
            cell.cell_contents = to_cuda(cell.cell_contents)
    return value


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (tuple, list)):
        return [x for part in value for x in tensors(part)]
    return []


def results(call, arguments, grad):
    """What is returned, and, with ``grad``, the gradients of all inputs for one weighted sum of it."""
    leaves = {name: x.requires_grad_() for name, x in arguments.items()
              if grad and isinstance(x, torch.Tensor) and x.is_floating_point()}
    with torch.set_grad_enabled(grad):
        found = tensors(call(**arguments))
    summed = [(x.float() * draw(x.numel(), seed=place).view(x.shape).to(x.device)).sum()
              for place, x in enumerate(found) if x.requires_grad]
    if not summed or not leaves:
        return [x.detach().clone() for x in found]
    grads = torch.autograd.grad(sum(summed), list(leaves.values()), allow_unused=True)
    return [x.detach() for x in found] + [x for x in grads if x is not None]


@cases(name=list(SUBJECTS), grad=[False, True])
def test_a_gpu_computes_what_the_cpu_does(name, grad):
    subject = SUBJECTS[name]
    want = results(subject.make(torch.float32), subject.arguments(), grad)
    got = results(to_cuda(subject.make(torch.float32)), {k: to_cuda(v) for k, v in subject.arguments().items()}, grad)
    assert len(got) == len(want)
    for place, (a, b) in enumerate(zip(got, want)):
        if b.is_floating_point():
            assert_close(a, b, BOUND, name=f"{name}, result {place}")
        else:
            assert torch.equal(a.cpu(), b)
