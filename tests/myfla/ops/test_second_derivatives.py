"""Second derivatives (``create_graph=True``) of everything with a hand-written backward, against finite differences."""

import pytest
import torch
import torch.nn.functional as F

from myfla.layers import GatedDeltaNet, RWKV7Attention
from myfla.models.rwkv7 import RWKV7FeedForward
from myfla.modules.token_shift import token_shift
from myfla.ops.gated_delta_rule import chunk_gated_delta_rule
from myfla.ops.rwkv7 import chunk_rwkv7, fused_recurrent_rwkv7
from myfla.ops.rwkv7.channel_mixing import channel_mixing_rwkv7
from myfla.ops.rwkv7.fused_addcmul import fused_addcmul_rwkv7
from myfla.ops.rwkv7.fused_k_update import fused_k_rwkv7
from myfla.ops.rwkv7.gate_output_correction import gate_output_correction
from myfla.ops.rwkv7.key_gates import key_gates
from myfla.ops.rwkv7.value_residual import mix_values
from myfla.testing import cases

D = torch.float64
OFFSETS = torch.tensor([0, 0, 4, 5, 20])


def draw(*shape):
    return torch.randn(*shape, dtype=D, requires_grad=True)


def rule(form, cu=None):
    def run(r, w, k, v, kk, a, state):
        kk, options = F.normalize(kk, dim=-1), dict(initial_state=state, output_final_state=True, cu_seqlens=cu)
        return form(r, -F.softplus(w), k, v, -kk, kk * a.sigmoid(), 1.0, **options)

    rows = 2 if cu is None else len(cu) - 1
    batch = 2 if cu is None else 1
    return run, [draw(batch, 20, 1, 3) for _ in range(6)] + [draw(rows, 1, 3, 3)]


def gated():
    def run(q, k, v, g, beta, state):
        return chunk_gated_delta_rule(q, k, v, -F.softplus(g), beta.sigmoid(), initial_state=state,
                                      output_final_state=True, use_qk_l2norm_in_kernel=True)

    return run, [draw(2, 20, 1, 3), draw(2, 20, 1, 3), draw(2, 20, 2, 3), draw(2, 20, 2), draw(2, 20, 2),
                 draw(2, 2, 3, 3)]  # fmt: skip


def layer(make):
    """All of a layer as a function of its input and parameters."""
    torch.manual_seed(3)
    module = make().to(D)
    names = [name for name, _ in module.named_parameters()]
    values = [(p.detach() + 0.2 * torch.randn_like(p)).requires_grad_() for p in module.parameters()]

    def run(x, *weights):
        return torch.func.functional_call(module, dict(zip(names, weights)), (x,))[0]

    return run, [draw(2, 6, 8), *values]


def own_key():
    return lambda k, w, a, k_k, k_a: key_gates(k, w, a, k_k, k_a, 3, 1e-6), [
        draw(2, 4, 6), draw(2, 4, 6), draw(2, 4, 6), draw(6), draw(6)]  # fmt: skip


SUBJECTS = {
    "chunk_gated_delta_rule": gated,
    "chunk_rwkv7": lambda: rule(chunk_rwkv7),
    "chunk_rwkv7 packed": lambda: rule(chunk_rwkv7, OFFSETS),
    "fused_recurrent_rwkv7": lambda: rule(fused_recurrent_rwkv7),
    "token_shift": lambda: (lambda x, c: token_shift(x, cache=c, output_cache=True), [draw(2, 5, 3), draw(2, 3)]),
    "token_shift packed": lambda: (
        lambda x, c: token_shift(x, OFFSETS, cache=c, output_cache=True), [draw(1, 20, 3), draw(4, 3)]),
    "addcmul": lambda: (fused_addcmul_rwkv7, [draw(2, 4, 3), draw(2, 4, 3), *(draw(3) for _ in range(6))]),
    "k_update": lambda: (fused_k_rwkv7, [draw(2, 4, 3), draw(2, 4, 3), draw(3)]),
    "key_gates": own_key,
    "mix_values": lambda: (mix_values, [draw(2, 4, 3) for _ in range(3)]),
    "gate_output": lambda: (
        gate_output_correction,
        [draw(2, 4, 6), draw(2, 4, 2, 3), draw(2, 4, 2, 3), draw(2, 3), draw(2, 4, 2, 3), draw(2, 4, 6)]),
    "channel_mixing": lambda: (
        lambda *t: channel_mixing_rwkv7(*t)[0], [draw(2, 4, 3), draw(2, 3), draw(3), draw(3, 5), draw(5, 3)]),
    "GatedDeltaNet": lambda: layer(lambda: GatedDeltaNet(hidden_size=8, head_dim=4, num_heads=1, expand_v=1)),
    "RWKV7Attention": lambda: layer(lambda: RWKV7Attention(
        hidden_size=8, head_dim=4, decay_low_rank_dim=2, gate_low_rank_dim=2, a_low_rank_dim=2, v_low_rank_dim=2)),
    "RWKV7FeedForward": lambda: layer(lambda: RWKV7FeedForward(8, intermediate_size=6)),
}  # fmt: skip


@cases(name=list(SUBJECTS))
def test_second_derivatives_are_those_of_the_function(name):
    if name[0].isupper() and not hasattr(torch, "func"):
        pytest.skip("torch.func came with PyTorch 2.0")
    run, inputs = SUBJECTS[name]()
    assert torch.autograd.gradgradcheck(run, inputs, atol=1e-5, rtol=1e-4, fast_mode=True)
