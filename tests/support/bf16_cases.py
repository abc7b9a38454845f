"""Inputs of the bf16 form's families, their float64 token loops, and the form's errors against these."""

import torch

import dplr_cases
import truth
from myfla.ops._delta import dispatch
from myfla.ops._delta.bf16 import chunks
from myfla.ops._delta.bf16.chunks import bf16_chunks
from myfla.ops._delta.bf16.dplr import DPLR
from myfla.ops._delta.bf16.gated_delta import GATED_DELTA
from myfla.ops._delta.bf16.kda import KDA

PACKED = [0, 1, 1, 70, 134, 200]
NAMES = {
    "gated": ("q", "k", "v", "g", "beta", "initial_state"), "kda": ("q", "k", "v", "g", "beta", "initial_state"),
    "dplr": dplr_cases.INPUTS,
}  # fmt: skip


def on_any_device(monkeypatch):
    """Every device counts as one with matrix units, so that the ops take this form."""
    monkeypatch.setattr(chunks, "has_matrix_units", lambda device: True)
    registry = [one._replace(device=None) if one.name == "bf16" else one for one in dispatch._registry]
    monkeypatch.setattr(dispatch, "_registry", registry)


def rows_of(B, cu):
    return B if cu is None else len(cu) - 1


def gated(B=2, T=37, H=1, HV=2, K=8, V=12, decay=0.5, beta=1.0, cu=None):
    """q, k, v, g, beta and states; with ``cu`` packed sequences."""
    B, T = (B, T) if cu is None else (1, cu[-1])
    k = torch.nn.functional.normalize(torch.randn(B, T, H, K), dim=-1)
    return dict(q=torch.randn(B, T, H, K), k=k, v=torch.randn(B, T, HV, V), g=-decay * torch.rand(B, T, HV),
                beta=beta * torch.rand(B, T, HV), initial_state=torch.randn(rows_of(B, cu), HV, K, V))  # fmt: skip


def kda(B=2, T=37, H=1, HV=2, K=8, V=12, decay=0.5, beta=1.0, cu=None):
    """The same with a log decay of each key channel."""
    x = gated(B, T, H, HV, K, V, decay, beta, cu)
    return {**x, "g": -decay * torch.rand(*x["g"].shape, K)}


def dplr(B=2, T=37, H=1, HV=2, K=8, V=12, decay="layer", cu=None):
    """`dplr_cases.make`; all heads are of their own."""
    return dplr_cases.make(B, T, HV, K, V, decay, cu, seed=int(torch.randint(1000, ())))


MAKE = {"gated": gated, "kda": kda, "dplr": dplr}


def double(x):
    return {name: t.double() for name, t in x.items()}


def halves(x):
    """What a GPU gets: bfloat16, states and the gated rules' decays in float32."""
    wide = ("initial_state", "g")
    return {name: t.float() if name in wide else t.bfloat16() for name, t in x.items()}


def call(family, x, scale, cu=None, **options):
    """The form on the inputs ``x``; options as `bf16_chunks`."""
    cu = None if cu is None else torch.tensor(cu, device=x["v"].device)
    if family == "dplr":
        tensors = (x["r"], x["k"], x["v"], -x["kk"], x["kk"] * x["a"], x["w"])
        options = {name: option for name, option in options.items() if name != "l2norm"}
    else:
        tensors = tuple(x[name] for name in NAMES[family][:5])
    which = {"gated": GATED_DELTA, "kda": KDA, "dplr": DPLR}[family]
    return bf16_chunks(which, tensors, x["initial_state"], scale, cu_seqlens=cu, **options)


def loop(family, x, scale, cu=None, l2norm=False):
    """The same, token after token."""
    if family == "dplr":
        return truth.rwkv7(**x, scale=scale, cu_seqlens=cu)
    if family == "gated":
        return truth.gated_delta_rule(**x, scale=scale, cu_seqlens=cu, l2norm=l2norm)
    return kda_loop(**x, scale=scale, cu=cu, l2norm=l2norm)


def kda_loop(q, k, v, g, beta, initial_state, scale, cu=None, l2norm=False):
    """``h <- exp(g) h;  h <- h + k (beta (v - h^T k))^T;  o = scale h^T q``."""
    if l2norm:
        q, k = (x * (x.square().sum(-1, keepdim=True) + 1e-6).rsqrt() for x in (q, k))
    q, k = (x.repeat_interleave(v.shape[2] // q.shape[2], 2) for x in (q, k))
    bounds = [(b, 0, v.shape[1]) for b in range(v.shape[0])] if cu is None else [(0, *x) for x in zip(cu, cu[1:])]
    outs, finals = [], []
    for (b, first, stop), h in zip(bounds, initial_state):
        for t in range(first, stop):
            h = h * g[b, t].exp().unsqueeze(-1)
            error = beta[b, t].unsqueeze(-1) * (v[b, t] - (h * k[b, t].unsqueeze(-1)).sum(1))
            h = h + k[b, t].unsqueeze(-1) * error.unsqueeze(1)
            outs.append(scale * (h * q[b, t].unsqueeze(-1)).sum(1))
        finals.append(h)
    return torch.stack(outs).view(v.shape), torch.stack(finals)


def errors(family, x, scale=0.3, cu=None, l2norm=False, **options):
    """Relative errors of outputs, states and gradients against the float64 token loop, by name."""
    ours = {name: t.clone().requires_grad_() for name, t in x.items()}
    exact = {name: t.double().cpu().requires_grad_() for name, t in x.items()}
    got = call(family, ours, scale, cu, l2norm=l2norm, **options)
    want = loop(family, exact, scale, cu, l2norm)
    weights = [torch.randn(t.shape, dtype=torch.float64) for t in want]
    found = got + torch.autograd.grad(got, list(ours.values()), [w.to(t) for w, t in zip(weights, got)])
    wanted = want + torch.autograd.grad(want, list(exact.values()), weights)
    # The loop's own gradient of an endless decay is NaN.
    pairs = [(a.detach().double().cpu(), torch.nan_to_num(b.detach())) for a, b in zip(found, wanted)]
    relative = [float((a - b).norm() / b.norm().clamp(min=1e-3)) for a, b in pairs]
    return dict(zip(("o", "state", *ours), relative))
