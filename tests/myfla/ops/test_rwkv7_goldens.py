"""RWKV-7's ops and layer against the recorded official ones, and against the float64 truth."""

import torch

import goldens
import truth
from myfla.layers.rwkv7 import RWKV7Attention
from myfla.models.utils import Cache
from myfla.modules.token_shift import token_shift
from myfla.ops.rwkv7 import chunk_rwkv7, fused_mul_recurrent_rwkv7
from myfla.testing import assert_close, cases

OPS = goldens.load("ops_rwkv7")
LAYERS = goldens.load("layer_rwkv7")
INPUTS = ("r", "w", "k", "v", "kk", "a", "h0")
TIGHT = {"dw": 5e-5, "da": 5e-5, "dkk": 5e-5}
OFFICIAL = {"value": 5e-3, "gradient": 2e-2}
OFFICIAL_BF16 = {"value": 3e-2, "gradient": 3e-2}


def run(case, form, dtype=None):
    """Outputs, final state and gradients of one op case, named as in the golden file."""
    given, cu = case.group("inputs"), case.params["cu"]
    tensors = {name: given[name].to(dtype or given[name].dtype) for name in INPUTS if name in given}
    tensors = {name: x.clone().requires_grad_() for name, x in tensors.items()}
    r, w, k, v, kk, a = (tensors[name] for name in INPUTS[:6])
    state = tensors.get("h0")
    if form == "truth":
        o, ht = truth.rwkv7(r, w, k, v, kk, a, initial_state=state, cu_seqlens=cu)
    else:
        more = dict(scale=1.0, initial_state=state, output_final_state=True)
        more["cu_seqlens"] = None if cu is None else torch.tensor(cu)
        chunk = form == "chunk"
        o, ht = chunk_rwkv7(r, w, k, v, -kk, kk * a, **more) if chunk else fused_mul_recurrent_rwkv7(
            r, w, k, v, kk, a, **more)
    loss = (o.double() * given["do"].double()).sum() + (ht.double() * given["dht"].double()).sum()
    grads = torch.autograd.grad(loss, list(tensors.values()))
    return {"o": o, "ht": ht, **{f"d{name}": g for name, g in zip(tensors, grads)}}


def test_all_recorded_cases_are_there():
    assert list(OPS) == ["plain", "state", "varlen", "one_token", "bf16", "long"]
    assert len(LAYERS) == 5 and sum(case.params["dtype"] == "bfloat16" for case in LAYERS.values()) == 1


@cases(name=list(OPS), form=["chunk", "recurrent"])
def test_ops_equal_the_truth(name, form):
    case = OPS[name]
    got, want = run(case, form), run(case, "truth", torch.float64)
    half = case.params["dtype"] == "bfloat16"
    for key in want:
        assert_close(got[key], want[key], rms=8e-3 if half else TIGHT.get(key, 1e-5), name=key)


@cases(name=list(OPS), form=["chunk", "recurrent"])
def test_ops_equal_the_official_kernels(name, form):
    """The official chunk kernel multiplies in TF32; its recurrent one is exact."""
    case = OPS[name]
    got, official = run(case, form), case.group(form)
    exact = form == "recurrent" and case.params["dtype"] == "float32"
    assert set(official) <= set(got)
    for key, want in official.items():
        assert_close(got[key], want, rms=1e-5 if exact else 6e-3, name=key)


def build(case, dtype):
    layer = RWKV7Attention(**case.params["kwargs"], dtype=dtype)
    layer.load_state_dict(case.group("params"), strict=True)
    return layer


def calls(case, layer, dtype):
    """Everything the fixture recorded for a layer, computed here: name to tensor."""
    given, params = case.group("inputs"), case.params
    x, do, mask, index = given["x"].to(dtype), given["do"].to(dtype), given["mask_left"], layer.layer_idx
    first = given["v_first"].to(dtype) if index else None

    def part(rows, i, j):
        return None if first is None else first[rows, i:j]

    out, leaf, every = {}, x.clone().requires_grad_(), slice(None)
    y = layer.train()(leaf, v_first=first)[0]
    (y * do).sum().backward()
    out["train/y"], out["train/dx"] = y.detach(), leaf.grad
    out.update({f"train/grad/{name}": p.grad for name, p in layer.named_parameters()})
    layer.eval()
    with torch.no_grad():
        out["eval_long/y"] = layer(x, v_first=first)[0]
        out["eval_short/y"] = layer(x[:, :40], v_first=part(every, 0, 40))[0]
        out["mask_left/y"] = layer(x, mask, v_first=first)[0][mask.bool()]
        out["varlen/y"] = layer(x[:1], cu_seqlens=torch.tensor(params["cu"]), v_first=part(slice(1), 0, None))[0]
        cache, start = Cache(), params["prefill"]
        stop = start + params["decode"]
        steps = {"prefill": [(0, start)], "decode": [(t, t + 1) for t in range(start, stop)],
                 "resume": [(stop, x.shape[1])]}
        for phase, cuts in steps.items():
            ys = [layer(x[:, i:j], past_key_values=cache, use_cache=True, v_first=part(every, i, j))[0]
                  for i, j in cuts]
            out[f"{phase}/y"] = torch.cat(ys, 1)
            for field in ("recurrent_state", "conv_state"):
                out[f"{phase}/{field}"] = cache[index][field]
            assert cache.get_seq_length(index) == cuts[-1][1]
    return out


def kind(name):
    return "gradient" if "grad" in name or name == "train/dx" else "value"


@cases(name=list(LAYERS))
def test_layers_equal_the_official_ones(name):
    case = LAYERS[name]
    dtype = getattr(torch, case.params["dtype"])
    got, want = calls(case, build(case, dtype), dtype), case.group("out")
    want["mask_left/y"] = want["mask_left/y"][case.group("inputs")["mask_left"].bool()]
    assert set(got) == set(want)
    bounds = OFFICIAL_BF16 if dtype == torch.bfloat16 else OFFICIAL
    for key in want:
        assert got[key].dtype == want[key].dtype
        assert_close(got[key], want[key], rms=bounds[kind(key)], name=key)


@cases(name=list(LAYERS))
def test_layers_equal_their_own_float64_run(name):
    case = LAYERS[name]
    dtype = getattr(torch, case.params["dtype"])
    got, want = calls(case, build(case, dtype), dtype), calls(case, build(case, torch.float64), torch.float64)
    for key in want:
        assert want[key].dtype == torch.float64
        assert_close(got[key], want[key], rms=2e-2 if dtype == torch.bfloat16 else 2e-5, name=key)


def test_token_shift_equals_the_official_one():
    case = goldens.load("modules")["token_shift"]
    given, want = case.group("inputs"), case.group("out")
    x = given["x"].clone().requires_grad_()
    y, last = token_shift(x, cache=given["cache"], output_cache=True)
    y.backward(given["do"])
    got = {"y": y, "cache": last, "dx": x.grad, "y_nocache": token_shift(given["x"])}
    got["y_varlen"] = token_shift(given["x"][:1], cu_seqlens=torch.tensor(case.params["cu"]))
    assert set(got) == set(want)
    for key in want:
        assert_close(got[key], want[key], rms=1e-6, name=key)
