"""Inputs of the half-precision chunk form, and its errors against the float64 token loop."""

import torch

import truth
from myfla.ops.gated_delta_rule.half_chunk import half_chunks

NAMES = ("q", "k", "v", "g", "beta", "initial_state")


def draw(B, T, H, HV, K, V, decay, dtype=torch.float64, beta=1.0):
    x = dict(
        q=torch.randn(B, T, H, K), k=torch.nn.functional.normalize(torch.randn(B, T, H, K), dim=-1),
        v=torch.randn(B, T, HV, V), g=-decay * torch.rand(B, T, HV), beta=beta * torch.rand(B, T, HV),
        initial_state=torch.randn(B, HV, K, V),
    )  # fmt: skip
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return {name: t.to(wide if name in ("g", "initial_state") else dtype) for name, t in x.items()}


def errors(x, unit, cut=None, scale=0.3, **how):
    """Relative error of outputs and gradients against the float64 token loop."""
    ours = {name: t.clone().requires_grad_() for name, t in x.items()}
    loop = {name: t.double().requires_grad_() for name, t in x.items()}
    got = half_chunks(*ours.values(), scale, unit, cut=cut, **how)
    want = truth.gated_delta_rule(**loop, scale=scale, l2norm=unit)
    weights = [torch.randn_like(t) for t in got]
    found = got + torch.autograd.grad(got, list(ours.values()), weights)
    wanted = want + torch.autograd.grad(want, list(loop.values()), [w.double() for w in weights])
    pairs = [(a.detach().double(), b.detach()) for a, b in zip(found, wanted)]
    found = [float((a - b).norm() / b.norm().clamp(min=1e-3)) for a, b in pairs]
    return dict(zip(("o", "state") + NAMES, found))
