"""Linear maps that are computed without calling the module: nobody who hooked in, or replaced a part, can tell."""

import copy

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.nn.utils import parametrize, spectral_norm, weight_norm

from myfla.layers import GatedDeltaNet, projections
from myfla.layers.projections import is_free, project
from myfla.testing import assert_close, cases


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
    "bottleneck": lambda linear: nn.Sequential(linear, nn.Tanh(), nn.Identity(), nn.Linear(3, 2)),
    "another activation": lambda linear: nn.Sequential(linear, nn.PReLU(), nn.Linear(3, 2)),
}


@cases(change=["bottleneck", "as it is"])
def test_float16_is_computed_in_float32_where_there_are_no_half_products(change, monkeypatch):
    monkeypatch.setattr(projections, "_half_products", lambda: False)
    linear, x = CHANGES[change](nn.Linear(4, 3)), torch.randn(2, 1, 4)
    got = project(copy.deepcopy(linear).half(), x.half())
    assert got.dtype is torch.float16
    assert_close(got, linear(x), 2e-3)


@cases(part=[0, 1, 2], kind=["hook", "forward"])
def test_parts_of_a_sequence_are_called_where_somebody_would_notice(part, kind):
    linear, x, seen = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), torch.randn(2, 1, 4), []
    if kind == "hook":
        linear[part].register_forward_pre_hook(lambda *_: seen.append(1))
    else:
        own = linear[part].forward
        linear[part].forward = lambda x: seen.append(1) or own(x)
    project(linear, x)
    assert seen == [1]


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
