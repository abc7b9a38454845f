"""Layers against the recorded official ones and their own float64 runs; GatedDeltaNet against a token loop too."""

import warnings

import torch

import layer_truth
from goldens import load
from myfla import layers
from myfla.models.utils import Cache
from myfla.testing import assert_close, cases

GATED_DELTANET = load("layer_gated_deltanet")
FAMILY = load("layers_family")
GOLDENS = {**GATED_DELTANET, **FAMILY}
# The official kernels' own distance from float64, in TF32 and in bfloat16, rounded up; ours is OWN.
OFFICIAL = {"value": 2e-3, "gradient": 7e-3, "decay": 4e-2}
OFFICIAL_BF16 = {"value": 1.5e-2, "gradient": 2e-2, "decay": 4e-2}
OWN = {"value": 1e-6, "gradient": 5e-6, "decay": 5e-6}
OWN_BF16 = {"value": 1e-2, "gradient": 1.5e-2, "decay": 3e-2}
OWN_BF16_GATED_DELTANET = {**OWN_BF16, "decay": 2e-2}
V_FIRST = ("GatedDeltaNet", "KimiDeltaAttention", "GatedLinearAttention")  # whose official layers cache their states so


def layer_name(case):
    return case.params.get("layer", "GatedDeltaNet")


def format_of(case):
    return torch.bfloat16 if case.params["dtype"].endswith("bfloat16") else torch.float32


def build(case, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = getattr(layers, layer_name(case))(**case.params["kwargs"])
    layer.load_state_dict(case.group("params"), strict=True)
    return layer.to(dtype)


def kind(name):
    return "decay" if name.rpartition("/")[2] in ("A_log", "dt_bias") else "gradient" if "grad" in name else "value"


def calls(case, layer, dtype):
    """Everything the fixture recorded, computed here: name to tensor."""
    given, params = case.group("inputs"), case.params
    x, do, mask = given["x"].to(dtype), given["do"].to(dtype), given["mask_left"]
    out, leaf = {}, x.clone().requires_grad_()
    y = layer.train()(leaf)[0]
    (y * do).sum().backward()
    out["train/y"], out["train/dx_grad"] = y.detach(), leaf.grad
    out.update({f"train/grad/{name}": p.grad for name, p in layer.named_parameters() if p.grad is not None})
    layer.eval()
    with torch.no_grad():
        out["eval_long/y"], out["eval_short/y"] = layer(x)[0], layer(x[:, :40])[0]
        out["mask_left/y"] = layer(x, mask)[0][mask.bool()]
        out["varlen/y"] = layer(x[:1], cu_seqlens=torch.tensor(params["cu"]))[0]
        cache, start = Cache(), params["prefill"]
        stop = start + params["decode"]
        steps = {"prefill": [(0, start)], "decode": [(t, t + 1) for t in range(start, stop)],
                 "resume": [(stop, x.shape[1])]}
        for phase, cuts in steps.items():
            ys = [layer(x[:, i:j], past_key_values=cache, use_cache=True)[0] for i, j in cuts]
            out[f"{phase}/y"] = torch.cat(ys, 1)
            out[f"{phase}/recurrent_state"] = cache[0]["recurrent_state"]
            for i, state in enumerate(cache[0]["conv_state"] or ()):
                out[f"{phase}/conv_state_{i}"] = state
            assert cache.get_seq_length() == cuts[-1][1]
    return out


def recorded(case):
    """The fixture's outputs; states K-first, the mask's pads left out."""
    want = case.group("out")
    want["train/dx_grad"] = want.pop("train/dx")
    want["mask_left/y"] = want["mask_left/y"][case.group("inputs")["mask_left"].bool()]
    if layer_name(case) in V_FIRST:
        for phase in ("prefill", "decode", "resume"):
            want[f"{phase}/recurrent_state"] = want[f"{phase}/recurrent_state"].transpose(2, 3)
    return want


def test_all_cases_are_there():
    assert (len(GATED_DELTANET), len(FAMILY), len(GOLDENS)) == (12, 17, 29)
    assert sum(format_of(case) is torch.bfloat16 for case in GATED_DELTANET.values()) == 1


@cases(name=list(GOLDENS))
def test_outputs_states_and_gradients_equal_the_official_layer(name):
    case = GOLDENS[name]
    dtype = format_of(case)
    got, want = calls(case, build(case, dtype), dtype), recorded(case)
    assert set(got) == set(want)
    bounds = OFFICIAL if dtype is torch.float32 else OFFICIAL_BF16
    for key in want:
        assert_close(got[key], want[key], rms=bounds[kind(key)], name=key)


@cases(name=list(GOLDENS))
def test_outputs_states_and_gradients_equal_our_float64_run(name):
    case = GOLDENS[name]
    dtype = format_of(case)
    got, want = calls(case, build(case, dtype), dtype), calls(case, build(case, torch.float64), torch.float64)
    bounds = OWN if dtype is torch.float32 else OWN_BF16_GATED_DELTANET if name in GATED_DELTANET else OWN_BF16
    for key in want:
        assert want[key].dtype == torch.float64
        assert_close(got[key], want[key], rms=bounds[kind(key)], name=key)


@cases(name=list(GATED_DELTANET))
def test_the_float64_run_equals_the_token_loop(name):
    case = GOLDENS[name]
    layer = build(case, torch.float64)
    x, cu = case.group("inputs")["x"].double()[:, :45], [0, 5, 6, 45]
    parameters = layer_truth.parameters_of(layer)
    with torch.no_grad():
        packed = layer(x[:1], cu_seqlens=torch.tensor(cu))[0]
    assert_close(layer(x)[0], layer_truth.batch(layer, parameters, x), rms=1e-12)
    want = [layer_truth.gated_deltanet(layer, parameters, x[0, i:j])[0] for i, j in zip(cu[:-1], cu[1:])]
    assert_close(packed[0], torch.cat(want), rms=1e-12)
