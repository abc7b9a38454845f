"""Inputs of the RWKV-7 / DPLR recurrence, its gradients, and its decays from none to -inf."""

import torch

import truth

INPUTS = ("r", "w", "k", "v", "kk", "a", "initial_state")


def _spikes(*shape):
    w = -0.6 * torch.rand(*shape)
    w[torch.rand(*shape) < 0.1] = -float("inf")
    w[torch.rand(*shape) < 0.1] = -7.0
    return w


def _reset(*shape):
    w = -0.6 * torch.rand(*shape)
    w[:, shape[1] // 3 : shape[1] // 3 + 3] = -50.0
    return w


DECAYS = {
    "none": lambda *shape: torch.zeros(*shape),
    "layer": lambda *shape: -0.6065 * torch.rand(*shape),
    "layer_floor": lambda *shape: torch.full(shape, -0.6065306597126334),
    "gate": lambda *shape: torch.nn.functional.logsigmoid(torch.randn(*shape)),
    "to_40": lambda *shape: -40 * torch.rand(*shape),
    "all_40": lambda *shape: torch.full(shape, -40.0),
    "all_90": lambda *shape: torch.full(shape, -90.0),
    "all_inf": lambda *shape: torch.full(shape, -float("inf")),
    "spikes": _spikes,
    "reset": _reset,
    "growth": lambda *shape: torch.where(torch.rand(*shape) < 0.5, torch.tensor(1.5), torch.tensor(-1.5)),
}


def make(B=2, T=37, H=2, K=16, V=16, decay="layer", cu=None, dtype=torch.float64, seed=0):
    """Random inputs by name: kk of length one, a in (0, 1); with ``cu`` packed sequences."""
    torch.manual_seed(seed)
    B, T = (B, T) if cu is None else (1, cu[-1])
    shape = (B, T, H, K)
    given = {"r": torch.randn(*shape), "w": DECAYS[decay](*shape), "k": torch.randn(*shape)}
    given["v"] = torch.randn(B, T, H, V)
    given["kk"] = torch.nn.functional.normalize(torch.randn(*shape), dim=-1)
    given["a"] = torch.rand(*shape)
    given["initial_state"] = torch.randn(B if cu is None else len(cu) - 1, H, K, V)
    return {name: x.to(dtype) for name, x in given.items()}


def leaves(given):
    """Copies that collect gradients."""
    return {name: x.detach().clone().requires_grad_() for name, x in given.items()}


def run(op, given, scale=1.0, cu=None, **options):
    """An op of the chunk or recurrent form on `make`'s inputs: (o, final state)."""
    x = given
    offsets = None if cu is None else torch.tensor(cu)
    return op(
        x["r"], x["k"], x["v"], -x["kk"], x["kk"] * x["a"], x["w"], scale=scale,
        initial_state=x["initial_state"], output_final_state=True, cu_seqlens=offsets, **options,
    )  # fmt: skip


def everything(outputs, inputs):
    """Outputs, final states and the gradients of a fixed random functional of both, by name."""
    total = 0
    for i, x in enumerate(outputs):
        weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        total = total + (x.double() * weight).sum()
    found = torch.autograd.grad(total, list(inputs.values()))
    named = {f"d{name}": g for name, g in zip(inputs, found)}
    return {"o": outputs[0].detach(), "ht": outputs[1].detach(), **named}


def loop(given, scale=1.0, cu=None):
    """`everything` of the float64 token loop, for inputs of any number format."""
    inputs = leaves({name: x.double() for name, x in given.items()})
    return everything(truth.rwkv7(**inputs, scale=scale, cu_seqlens=cu), inputs)
