"""RWKV-7's implementations, each brought to ``op(r, w, k, v, a, b) -> o``, all ``[B, T, H, K]``, without a scale."""

import functools
from typing import Callable, Dict

import torch

from benchmarks.measure import Missing
from benchmarks.peers import OURS, TRITON, Op, first, fla_file, optional, rwkv_ops

STRONGEST = -0.6065306597126334
"""The lower bound of log decays that both layers give to their op."""


def _ours(backend: str = "torch") -> Op:
    from myfla.ops.rwkv7.chunk import chunk_rwkv7 as op

    return lambda r, w, k, v, a, b: op(r, w, k, v, a, b, scale=1.0, lower_bound=STRONGEST, backend=backend)[0]


def _ours_recurrent() -> Op:
    from myfla.ops.rwkv7.fused_recurrent import fused_recurrent_rwkv7 as op

    return lambda r, w, k, v, a, b: op(r, w, k, v, a, b, scale=1.0, backend="torch")[0]


def _fla(name: str) -> Op:
    op = getattr(fla_file("ops/generalized_delta_rule/dplr/naive.py"), name)

    def call(r, w, k, v, a, b):
        r = r * r.shape[-1] ** 0.5  # it scales by K ** -0.5, and does not mix dtypes
        q, w, k, v, a, b = (x.float().transpose(1, 2) for x in (r, w, k, v, a, b))
        return op(q, k, v, a, b, w)[0].transpose(1, 2)

    return call


def _rwkv_ops() -> Op:
    op = rwkv_ops().generalized_delta_rule
    # Its argument is log(-log decay), which a layer computes anyway.
    return lambda r, w, k, v, a, b: first(op(r, torch.log(-w), k, v, a, b, output_final_state=False))


def token_loop() -> Op:
    """The recurrence as its authors write it, ``S [V, K]`` and four products for a token."""

    def call(r, w, k, v, a, b):
        batch, tokens, heads, key = r.shape
        state = v.new_zeros(batch, heads, v.shape[-1], key)
        decay, outputs = w.exp(), []
        for t in range(tokens):
            write = v[:, t, :, :, None] @ k[:, t, :, None] + state @ a[:, t, :, :, None] @ b[:, t, :, None]
            state = state * decay[:, t, :, None] + write
            outputs.append((state @ r[:, t, :, :, None])[..., 0])
        return torch.stack(outputs, 1)

    return call


def _triton() -> Op:
    if not torch.cuda.is_available():
        raise Missing("no CUDA GPU")
    op = optional("fla.ops.rwkv7").chunk_rwkv7
    return lambda r, w, k, v, a, b: op(r, w, k, v, a, b, scale=1.0, backend="torch")[0]


RWKV7: Dict[str, Callable[[], Op]] = {
    OURS: _ours,
    "fla naive chunk": functools.partial(_fla, "dplr_chunkwise"),
    "token loop": token_loop,
    "myfla recurrent": _ours_recurrent,
    "fla naive recurrent": functools.partial(_fla, "dplr_recurrence"),
    "rwkv_ops": _rwkv_ops,
    TRITON: _triton,
}


def _our_step(inplace: bool) -> Op:
    from myfla.ops.rwkv7.fused_recurrent import fused_recurrent_rwkv7 as op

    more = {"scale": 1.0, "inplace_final_state": inplace, "backend": "torch"}
    return lambda r, w, k, v, a, b, s: op(r, w, k, v, a, b, initial_state=s, **more)


def _fla_step() -> Op:
    op = fla_file("ops/generalized_delta_rule/dplr/naive.py").dplr_recurrence

    def step(r, w, k, v, a, b, s):
        r = r * r.shape[-1] ** 0.5
        o, s = op(*(x.transpose(1, 2) for x in (r, k, v, a, b, w)), initial_state=s)
        return o.transpose(1, 2), s

    return step


def _plain_step() -> Op:
    """The equations on a state ``[K, V]``, each written as one operation."""

    def step(r, w, k, v, a, b, s):
        r, decay, k, v, a, b = (x[:, 0, :, :, None] for x in (r, w.exp(), k, v, a, b))
        read = a.transpose(2, 3) @ s
        s = s * decay + b * read + k * v.transpose(2, 3)
        return (r.transpose(2, 3) @ s).transpose(1, 2), s

    return step


RWKV7_STEPS: Dict[str, Callable[[], Op]] = {
    OURS: functools.partial(_our_step, False),
    "myfla in place": functools.partial(_our_step, True),
    "fla naive recurrent": _fla_step,
    "plain operations": _plain_step,
}
"""One decoding step of each: ``step(r, w, k, v, a, b, state) -> (o, new state)``."""
