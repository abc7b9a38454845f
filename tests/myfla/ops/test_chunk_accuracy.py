"""Where rounding errors add up, the chunk form stays near the recurrent form."""

import torch
import torch.nn.functional as F

import truth
from myfla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
from myfla.ops.kda import chunk_kda, fused_recurrent_kda
from myfla.testing import cases

OPS = {
    "gated": (chunk_gated_delta_rule, fused_recurrent_gated_delta_rule), "kda": (chunk_kda, fused_recurrent_kda),
}  # fmt: skip


def error(x, exact):
    return float((x.double() - exact).norm() / exact.norm())


@cases(op=list(OPS), seed=[0, 1, 2], keys=["one", "few"])
def test_a_memory_that_keeps_lengths(op, seed, keys):
    """beta = 2 and no decay: every transition is a reflection, and no error ever fades."""
    T, K = 512, 64
    draw = torch.Generator().manual_seed(seed)
    several = F.normalize(torch.randn(1 if keys == "one" else 5, K, generator=draw), dim=-1)
    k = several[torch.arange(T) % len(several)].view(1, T, 1, K)
    q, v = k.clone(), torch.randn(1, T, 1, K, generator=draw)
    g, beta = torch.zeros(1, T, 1), torch.full((1, T, 1), 2.0)
    want = truth.gated_delta_rule(*(x.double() for x in (q, k, v, g, beta)))
    g = g.unsqueeze(-1).expand(-1, -1, -1, K) if op == "kda" else g
    chunk, recurrent = (form(q, k, v, g=g, beta=beta, output_final_state=True) for form in OPS[op])
    for mine, theirs, exact in zip(chunk, recurrent, want):
        assert error(mine, exact) < 10 * max(error(theirs, exact), 1e-6)


@cases(rate=[1.0, 3.5])
def test_gradients_of_a_strong_gate(rate):
    """Nothing cancels in the log decay's gradient: A_log's is as exact as the rest."""
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 256, 2, 16, generator=draw) for _ in range(3))
    given = [q, F.normalize(k, dim=-1), v, 3 + 2 * torch.randn(1, 256, 2, generator=draw),
             torch.rand(1, 256, 2, generator=draw), torch.full((2,), rate)]  # fmt: skip
    found = []
    for dtype in (torch.float32, torch.float64):
        leaves = [x.to(dtype).requires_grad_() for x in given]
        o, _ = chunk_gated_delta_rule(*leaves[:5], use_gate_in_kernel=True, A_log=leaves[5])
        weight = torch.randn(o.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
        found.append(torch.autograd.grad((o * weight).sum(), [leaves[3], leaves[5]]))
    for mine, exact in zip(*found):
        assert error(mine, exact) < 1e-6
