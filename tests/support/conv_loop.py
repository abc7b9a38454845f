"""The short convolution token by token, and gradients compared one by one."""

import torch

from myfla.testing import assert_close


def loop(x, weight, bias=None, residual=None, state=None, activation=None):
    """One sequence ``[T, D]``, token by token: output and final state ``[D, W]``."""
    D, W = weight.shape
    window = torch.zeros(D, W, dtype=x.dtype) if state is None else state
    rows = []
    for t in range(x.shape[0]):
        window = torch.cat([window[:, 1:], x[t].unsqueeze(1)], 1)
        z = (window * weight).sum(1)
        z = z if bias is None else z + bias
        y = z * torch.sigmoid(z) if activation else z
        rows.append(y if residual is None else y + residual[t])
    return torch.stack(rows) if rows else x.clone(), window


def loop_packed(x, offsets, weight, bias=None, residual=None, state=None, activation=None):
    """The loop over sequences and tokens that the packed call must equal: ``[T, D]``, ``[N, D, W]``."""
    ys, finals = [], []
    for n, (a, b) in enumerate(zip(offsets[:-1], offsets[1:])):
        own = None if state is None else state[n]
        y, final = loop(x[a:b], weight, bias, None if residual is None else residual[a:b], own, activation)
        ys.append(y)
        finals.append(final)
    return torch.cat(ys), torch.stack(finals)


def leaves(*shapes, dtype=torch.float64):
    return [None if shape is None else torch.randn(*shape, dtype=dtype).requires_grad_() for shape in shapes]


def gradients(outputs, weights, inputs):
    loss = sum((out * weight).sum() for out, weight in zip(outputs, weights))
    return torch.autograd.grad(loss, [t for t in inputs if t is not None], allow_unused=True)


def assert_same_gradients(got, want, rms):
    for i, (g, w) in enumerate(zip(got, want)):
        if w is None or not w.any():
            assert g is None or not g.any(), f"gradient {i} should be zero"
        else:
            assert_close(g, w, rms=rms, name=f"gradient {i}")
