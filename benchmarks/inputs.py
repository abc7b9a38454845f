"""Random inputs like those of the op in a newly initialised layer, and the two kinds of work on them."""

from typing import Any, Callable, Dict, Tuple

import torch
import torch.nn.functional as F

Tensors = Tuple[torch.Tensor, ...]


def gated_inputs(batch: int, tokens: int, heads: int, key: int, dtype: torch.dtype, device: str) -> Tensors:
    """q, k, v ``[B, T, H, K]``, log decay g and strength beta ``[B, T, H]``."""
    draw = _generator(tokens)
    q, k, v = (torch.randn(batch, tokens, heads, key, generator=draw) for _ in range(3))
    step = 0.001 * 100 ** torch.rand(batch, tokens, heads, generator=draw)  # as the layer draws dt: 0.001 to 0.1
    g = -16 * torch.rand(heads, generator=draw) * step
    beta = torch.rand(batch, tokens, heads, generator=draw)
    q, k, v, beta = (x.to(device, dtype) for x in (q, k, v, beta))
    return q, k, v, g.to(device), beta


def rwkv7_inputs(batch: int, tokens: int, heads: int, key: int, dtype: torch.dtype, device: str) -> Tensors:
    """r, w (log decay, -0.61 to 0), k, v, a = -kk, b = kk * rate: all ``[B, T, H, K]``."""
    draw = _generator(tokens)
    r, w, k, v, kk, rate = (torch.randn(batch, tokens, heads, key, generator=draw) for _ in range(6))
    w, kk = -0.6065 * torch.sigmoid(w), F.normalize(kk, dim=-1)
    made = r, w, k, v, -kk, kk * torch.sigmoid(rate)
    return tuple(x.to(device, dtype) for x in made)


def kda_inputs(batch: int, tokens: int, heads: int, key: int, dtype: torch.dtype, device: str) -> Tensors:
    """q, k, v and log decay g ``[B, T, H, K]``, strength beta ``[B, T, H]``."""
    q, k, v, g, beta = gated_inputs(batch, tokens, heads, key, dtype, device)
    spread = 2 * torch.rand(*q.shape, generator=_generator(tokens + 1)).to(device)
    return q, k, v, g.unsqueeze(-1) * spread, beta


INPUTS: Dict[str, Callable[..., Tensors]] = {"gated delta rule": gated_inputs, "RWKV-7": rwkv7_inputs}


def forward(op: Callable[..., torch.Tensor], inputs: Tensors) -> Callable[[], Any]:
    """The op without autograd; returns its output."""

    def work() -> Tensors:
        with torch.no_grad():
            return (op(*inputs),)

    return work


def forward_backward(op: Callable[..., torch.Tensor], inputs: Tensors) -> Callable[[], Any]:
    """The op and the gradients of all its inputs; returns the output and them."""
    gradient = inputs[0].new_empty(0)

    def work() -> Tensors:
        nonlocal gradient
        leaves = [x.detach().requires_grad_() for x in inputs]
        o = op(*leaves)
        if gradient.shape != o.shape:  # in the first run, which is not timed
            gradient = torch.randn(o.shape, generator=_generator(1)).to(o)
        return (o.detach(), *torch.autograd.grad(o, leaves, gradient.to(o.dtype)))

    return work


WORKS = {"forward": forward, "forward + backward": forward_backward}


def largest_error(got: Tensors, want: Tensors) -> float:
    """The largest relative norm of the difference, of all tensors."""
    return max(((a.float() - b.float()).norm() / b.float().norm()).item() for a, b in zip(got, want))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
