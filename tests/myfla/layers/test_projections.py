"""Linear maps that are computed without calling the module: nobody who hooked in, or replaced a part, can tell."""

import copy

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.utils import parametrize, spectral_norm, weight_norm

from myfla.layers import GatedDeltaNet
from myfla.layers.half import is_free, project
from myfla.testing import cases


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight


class Louder(nn.Linear):
    def forward(self, x):
        return 3 * super().forward(x)


def flat(linear):
    """As a sharded module has it: the weight is a view, and no parameter."""
    weight = linear.weight.detach().clone()
    del linear._parameters["weight"]
    linear.weight = weight
    return linear


def own_forward(linear):
    linear.forward = lambda x: nn.functional.linear(x, linear.weight) - 1
    return linear


CHANGES = {
    "as it is": lambda linear: linear,
    "subclass": lambda linear: Louder(4, 3, bias=False),
    "forward hook": lambda linear: (linear.register_forward_hook(lambda m, x, y: y + 1), linear)[1],
    "pre hook": lambda linear: (linear.register_forward_pre_hook(lambda m, x: (2 * x[0],)), linear)[1],
    "parametrized": lambda linear: (parametrize.register_parametrization(linear, "weight", Doubled()), linear)[1],
    "weight norm": weight_norm,
    "spectral norm": lambda linear: spectral_norm(linear).eval(),
    "flat weight": flat,
    "own forward": own_forward,
    "sequential": lambda linear: nn.Sequential(linear, nn.Linear(3, 2)),
}


@cases(change=list(CHANGES), bias=[False, True])
def test_it_is_what_the_module_gives(change, bias):
    linear, x = CHANGES[change](nn.Linear(4, 3, bias=bias)), torch.randn(2, 1, 4)
    with torch.no_grad():
        want = linear(x)
        assert torch.equal(project(linear, x), want)
        if change not in ("own forward", "parametrized"):  # which do not take copies along, or refuse
            assert torch.equal(project(copy.deepcopy(linear), x), want)


def test_gradients_and_hooks_of_the_backward_are_the_modules():
    linear, x, seen = nn.Linear(4, 3), torch.randn(2, 1, 4), []
    project(linear, x).sum().backward()
    grads = [p.grad for p in linear.parameters()]
    linear.zero_grad()
    linear(x).sum().backward()
    assert all(map(torch.equal, grads, (p.grad for p in linear.parameters())))
    linear.register_full_backward_hook(lambda *_: seen.append(1))
    project(linear, x.requires_grad_()).sum().backward()
    assert seen == [1]


@cases(register=[register_module_forward_hook, register_module_forward_pre_hook])
def test_a_hook_for_all_modules_is_called(register):
    layer, seen = GatedDeltaNet(hidden_size=16, head_dim=8, num_heads=2), set()
    hook = register(lambda module, *_: seen.add(module) and None)
    try:
        assert not is_free(layer.q_proj)
        layer(torch.randn(1, 3, 16))
    finally:
        hook.remove()
    assert is_free(layer.q_proj) and {m for m in layer.modules() if isinstance(m, nn.Linear)} <= seen
