"""Ops and layers on a CUDA device: the numbers of the CPU, and of the float64 loop. Skipped where there is none."""

import pytest
import torch

import truth
from myfla.layers import GatedDeltaNet, RWKV7Attention
from myfla.models.utils import Cache
from myfla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
from myfla.ops.rwkv7 import chunk_rwkv7, fused_mul_recurrent_rwkv7
from myfla.testing import assert_close, cases

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

GDR = {"chunk": chunk_gated_delta_rule, "recurrent": fused_recurrent_gated_delta_rule}
RWKV = {
    "chunk": lambda r, w, k, v, kk, a, **more: chunk_rwkv7(r, w, k, v, -kk, kk * a, scale=1.0, **more),
    "recurrent": lambda *x, **more: fused_mul_recurrent_rwkv7(*x, scale=1.0, **more),
}
LAYERS = {
    "gated_deltanet": lambda: GatedDeltaNet(hidden_size=64, head_dim=32, num_heads=2, layer_idx=0),
    "rwkv7": lambda: RWKV7Attention(hidden_size=64, head_dim=32, layer_idx=0, num_hidden_layers=2),
}
BOUND = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float64: 1e-11}


def compare(op, loop, tensors, dtype, cu):
    cpu = {name: x.to(dtype).requires_grad_() for name, x in tensors.items()}
    gpu = {name: x.to("cuda", dtype).requires_grad_() for name, x in tensors.items()}
    more = dict(output_final_state=True, cu_seqlens=None if cu is None else torch.tensor(cu, device="cuda"))
    want, got = loop(cpu, cu), op(gpu, more)
    for (a, b), part in zip(zip(got, want), ("o", "state")):
        assert_close(a, b, BOUND[dtype], name=part)
    weights = [torch.randn(x.shape, dtype=torch.float64) for x in want]
    wants = torch.autograd.grad(sum((x * w).sum() for x, w in zip(want, weights)), list(cpu.values()))
    loss = sum((x.double() * w.cuda()).sum() for x, w in zip(got, weights))
    for name, a, b in zip(cpu, torch.autograd.grad(loss, list(gpu.values())), wants):
        assert_close(a, b, 5 * BOUND[dtype], name=f"d{name}")


@cases(op=list(GDR), dtype=list(BOUND), cu=[None, [0, 1, 70, 70, 200]], K=[16, 64])
def test_gated_delta_rule_equals_the_float64_loop(op, dtype, cu, K):
    B, rows = (2, 2) if cu is None else (1, len(cu) - 1)
    tensors = dict(
        q=torch.randn(B, 200, 2, K), k=torch.nn.functional.normalize(torch.randn(B, 200, 2, K), dim=-1),
        v=torch.randn(B, 200, 4, K), g=-3 * torch.rand(B, 200, 4), beta=2 * torch.rand(B, 200, 4),
        initial_state=torch.randn(rows, 4, K, K),
    )  # fmt: skip
    compare(lambda x, more: GDR[op](**x, **more), lambda x, cu: truth.gated_delta_rule(**x, cu_seqlens=cu), tensors,
            dtype, cu)  # fmt: skip


@cases(op=list(RWKV), dtype=list(BOUND), cu=[None, [0, 1, 70, 70, 200]])
def test_rwkv7_equals_the_float64_loop(op, dtype, cu):
    B, rows = (2, 2) if cu is None else (1, len(cu) - 1)
    draw = lambda: torch.randn(B, 200, 2, 32)  # noqa: E731
    tensors = dict(r=draw(), w=-0.6 * torch.rand(B, 200, 2, 32), k=draw(), v=draw(),
                   kk=torch.nn.functional.normalize(draw(), dim=-1), a=torch.rand(B, 200, 2, 32),
                   h0=torch.randn(rows, 2, 32, 32))  # fmt: skip

    def call(x, more):
        return RWKV[op](*(x[n] for n in ("r", "w", "k", "v", "kk", "a")), initial_state=x["h0"], **more)

    def loop(x, cu):
        return truth.rwkv7(*(x[n] for n in ("r", "w", "k", "v", "kk", "a")), initial_state=x["h0"], cu_seqlens=cu)

    compare(call, loop, tensors, dtype, cu)


@cases(kind=list(LAYERS), masked=[False, True])
def test_layers_train_and_stream_as_on_the_cpu(kind, masked):
    layer = LAYERS[kind]()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.2) if parameter.abs().sum() == 0 else None
    x = torch.randn(2, 100, 64)
    mask = torch.ones(2, 100, dtype=torch.long)
    mask[0, :7], mask[1, 90:] = 0, 0
    found = []
    for device in ("cpu", "cuda"):
        layer = layer.to(device)
        layer.zero_grad(set_to_none=True)
        leaf = x.detach().to(device).requires_grad_()
        y = layer(leaf, attention_mask=mask.to(device) if masked else None)[0]
        y.square().sum().backward()
        cache = Cache()
        with torch.no_grad():
            pieces = [layer(part, past_key_values=cache, use_cache=True)[0]
                      for part in leaf.split([70, 1, 1, 28], dim=1)]
        grads = {name: p.grad.clone() for name, p in layer.named_parameters() if p.grad is not None}
        found.append(dict(y=y, dx=leaf.grad, stream=torch.cat(pieces, 1), state=cache[0]["recurrent_state"], **grads))
    for name, want in found[0].items():
        assert_close(found[1][name], want, 1e-4 if name in ("A_log", "dt_bias") else 2e-5, name=name)


@cases(kind=list(LAYERS), dtype=[torch.bfloat16, torch.float16])
def test_autocast_gives_half_precision_layers(kind, dtype):
    layer, x = LAYERS[kind]().cuda(), torch.randn(2, 100, 64, device="cuda")
    want = layer(x)[0]
    with torch.autocast("cuda", dtype=dtype):
        got = layer(x)[0]
    got.float().square().sum().backward()
    if want.abs().sum() > 0:
        assert_close(got, want, 3e-2, largest=0.5)
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters() if p.grad is not None)
