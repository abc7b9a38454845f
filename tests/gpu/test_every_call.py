"""All public functions and modules on a CUDA device, with and without gradients: as exact as on the CPU."""

import inspect

import pytest
import torch

from fuzz_family import draw
from fuzz_subjects import SUBJECTS
from myfla.models.utils import Cache
from myfla.testing import assert_close, cases, rms_error

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

BOUND = 2e-5


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
    summed = [(x.double() * draw(x.numel(), seed=100 + place).view(x.shape).to(x.device)).sum()
              for place, x in enumerate(found) if x.requires_grad]
    if not summed or not leaves:
        return [x.detach().clone() for x in found]
    grads = torch.autograd.grad(sum(summed), list(leaves.values()), allow_unused=True)
    return [x.detach() for x in found] + [x for x in grads if x is not None]


def double(value):
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


@cases(name=list(SUBJECTS), grad=[False, True])
def test_a_gpu_computes_what_the_cpu_does(name, grad):
    """Within rounding of float64: where a CPU loses digits, up to four times as many."""
    subject = SUBJECTS[name]
    truth = results(subject.make(torch.float64), {k: double(v) for k, v in subject.arguments().items()}, grad)
    cpu = results(subject.make(torch.float32), subject.arguments(), grad)
    gpu = results(to_cuda(subject.make(torch.float32)), {k: to_cuda(v) for k, v in subject.arguments().items()}, grad)
    assert len(gpu) == len(cpu) == len(truth)
    for place, (a, b, want) in enumerate(zip(gpu, cpu, truth)):
        if want.is_floating_point():
            assert_close(a, want, max(BOUND, 4 * rms_error(b, want)), name=f"{name}, result {place}")
        else:
            assert torch.equal(a.cpu(), want)
