"""The official kernels as a backend, on a CUDA device with fla: chosen where they are correct, refused elsewhere.

    pip install 'flash-linear-attention>=0.6.0' && python -m pytest tests/gpu/test_fla_backend.py
"""

import logging

import pytest
import torch
import torch.nn.functional as F

from myfla.backends import BackendError, choice, describe, official
from myfla.layers import GatedDeltaNet, RWKV7Attention
from myfla.models.utils import Cache
from myfla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
from myfla.ops.rwkv7 import chunk_rwkv7, fused_mul_recurrent_rwkv7, fused_recurrent_rwkv7
from myfla.testing import assert_close, cases

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.skipif(official.import_problem() is not None, reason=str(official.import_problem())),
]
# Errors of the official kernels against a float64 loop: 4e-3 in bfloat16, 5e-4 in float16.
BOUND = {torch.bfloat16: 1e-2, torch.float16: 3e-3}
LAYERS = {
    "gated_deltanet": lambda **of: GatedDeltaNet(hidden_size=128, head_dim=64, num_heads=2, layer_idx=0, **of),
    "rwkv7": lambda **of: RWKV7Attention(hidden_size=128, head_dim=64, layer_idx=0, num_hidden_layers=2, **of),
}


def unsound():
    return official.unsound_gated_backward(official._triton_version(), torch.cuda.get_device_capability())


def gated(cu):
    batch, rows = (2, 2) if cu is None else (1, len(cu) - 1)
    q, k = (F.normalize(torch.randn(batch, 200, 2, 64, device="cuda"), dim=-1) for _ in range(2))
    v, g = torch.randn(batch, 200, 4, 64, device="cuda"), -torch.rand(batch, 200, 4, device="cuda")
    return [q, k, v, g, torch.rand(batch, 200, 4, device="cuda"), torch.randn(rows, 4, 64, 64, device="cuda")]


def channels(cu):
    batch, rows = (2, 2) if cu is None else (1, len(cu) - 1)
    r, k, v, kk = (torch.randn(batch, 200, 2, 64, device="cuda") for _ in range(4))
    w, a = -0.6 * torch.rand_like(r), torch.rand_like(r)
    return [r, w, k, v, F.normalize(kk, dim=-1), a, torch.randn(rows, 2, 64, 64, device="cuda")]


def run_gated(op):
    def run(q, k, v, g, beta, state, cu, backend):
        return op(q, k, v, g=g, beta=beta, initial_state=state, output_final_state=True, cu_seqlens=cu, backend=backend)

    return run


def run_channels(op):
    def run(r, w, k, v, kk, a, state, cu, backend):
        return op(r, w, k, v, -kk, kk * a, scale=1.0, initial_state=state, output_final_state=True, cu_seqlens=cu,
                  backend=backend)  # fmt: skip

    return run


def run_mul(r, w, k, v, kk, a, state, cu, backend):
    return fused_mul_recurrent_rwkv7(r, w, k, v, kk, a, initial_state=state, output_final_state=True, cu_seqlens=cu,
                                     backend=backend)  # fmt: skip


OPS = {
    "chunk_gated_delta_rule": (gated, run_gated(chunk_gated_delta_rule)),
    "fused_recurrent_gated_delta_rule": (gated, run_gated(fused_recurrent_gated_delta_rule)),
    "chunk_rwkv7": (channels, run_channels(chunk_rwkv7)),
    "fused_recurrent_rwkv7": (channels, run_channels(fused_recurrent_rwkv7)),
    "fused_mul_recurrent_rwkv7": (channels, run_mul),
}


@cases(name=list(OPS), dtype=list(BOUND), cu=[None, [0, 1, 70, 70, 200]])
def test_results_are_those_of_the_specification(name, dtype, cu):
    make, run = OPS[name]
    offsets = None if cu is None else torch.tensor(cu, device="cuda")
    *tensors, state = make(cu)
    given = [x.to(dtype) for x in tensors]
    with torch.no_grad():
        want = run(*(x.double() for x in given), state.double(), offsets, "naive")
        got = run(*given, state, offsets, "fla")
    for mine, theirs, part in zip(got, want, ("o", "state")):
        assert mine.dtype == (dtype if part == "o" else torch.float32)
        assert_close(mine, theirs, rms=BOUND[dtype], largest=20 * BOUND[dtype], name=part)


@cases(name=["chunk_gated_delta_rule", "chunk_rwkv7"], cu=[None, [0, 1, 70, 70, 200]])
def test_gradients_are_right_or_refused(name, cu):
    make, run = OPS[name]
    offsets = None if cu is None else torch.tensor(cu, device="cuda")
    *tensors, state = make(cu)
    leaves = [x.bfloat16().requires_grad_() for x in tensors] + [state.requires_grad_()]
    if name == "chunk_gated_delta_rule" and unsound():
        with pytest.raises(BackendError, match=r"Hopper.*use backend='auto' or 'torch'"):
            run(*leaves, offsets, "fla")
        return
    truth = [x.detach().double().requires_grad_() for x in leaves]
    weight = None
    grads = []
    for given, backend in ((leaves, "fla"), (truth, "naive")):
        o, final = run(*given, offsets, backend)
        weight = torch.randn(o.shape, device="cuda") if weight is None else weight
        grads.append(torch.autograd.grad((o * weight).sum() + final.sum(), given))
    for mine, theirs in zip(*grads):
        assert_close(mine, theirs, rms=2e-2, largest=0.5)


@cases(kind=list(LAYERS), dtype=list(BOUND))
def test_auto_takes_the_official_kernels_where_they_are_sound(kind, dtype, caplog, monkeypatch):
    monkeypatch.setattr(choice, "_told", set())
    layer, x = LAYERS[kind](device="cuda", dtype=dtype), torch.randn(2, 100, 128, device="cuda", dtype=dtype)
    with caplog.at_level(logging.INFO, "myfla"):
        layer(x)[0].float().sum().backward()
        layer.eval()
        with torch.no_grad():
            layer(x)
            layer(x[:, :1])
    lines = [record.getMessage() for record in caplog.records if "computed by backend" in record.getMessage()]
    trained = "torch" if kind == "gated_deltanet" and unsound() else "fla"
    assert lines[0].endswith(f"on cuda: computed by backend {trained} (asked for: auto)")
    assert any("computed by backend fla" in line for line in lines)
    assert "backend=auto (fla in half precision" in repr(layer)


@cases(kind=list(LAYERS))
def test_auto_computes_float32_itself(kind, caplog, monkeypatch):
    monkeypatch.setattr(choice, "_told", set())
    with caplog.at_level(logging.INFO, "myfla"):
        LAYERS[kind](device="cuda")(torch.randn(1, 9, 128, device="cuda"))
    assert "computed by backend torch" in caplog.records[-1].getMessage()


@cases(kind=list(LAYERS), dtype=list(BOUND))
def test_layers_stream_on_the_official_kernels_as_on_ours(kind, dtype):
    layer = LAYERS[kind](device="cuda", dtype=dtype).eval()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.1) if parameter.abs().sum() == 0 else None
    x = torch.randn(2, 100, 128, device="cuda", dtype=dtype)
    mask = torch.ones(2, 100, dtype=torch.long, device="cuda")
    mask[0, :7] = 0
    found = []
    for backend in ("fla", "torch"):
        layer.backend, cache, pieces = backend, Cache(), []
        with torch.no_grad():
            for part, seen in zip(x.split([70, 1, 29], dim=1), mask.split([70, 1, 29], dim=1)):
                pieces.append(layer(part, attention_mask=seen, past_key_values=cache, use_cache=True)[0])
        found.append((torch.cat(pieces, 1), cache[0]["recurrent_state"]))
    for mine, theirs in zip(*found):
        assert_close(mine, theirs, rms=2 * BOUND[dtype], largest=0.3)


def test_the_official_recurrent_kernel_has_no_backward():
    x = torch.randn(1, 5, 1, 16, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    with pytest.raises(BackendError, match=r"has no backward pass.*use backend='auto' or 'torch'"):
        fused_recurrent_gated_delta_rule(x, x, x, backend="fla")
    fused_recurrent_gated_delta_rule(x, x, x)[0].float().sum().backward()  # auto: ours


def test_describe_tells_of_this_device():
    told = describe("cuda")
    assert told["fla"].startswith("usable") and ("Hopper" in told["fla"]) == bool(unsound())
