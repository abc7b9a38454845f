"""The GatedDeltaNet layer against the recorded official one, and against its own float64 run."""

import warnings

import torch

import layer_truth
from goldens import load, names
from myfla.layers.gated_deltanet import GatedDeltaNet
from myfla.models.utils import Cache
from myfla.testing import assert_close, cases

GOLDENS = load("layer_gated_deltanet")
OFFICIAL = {"value": 5e-3, "gradient": 2e-2, "decay": 6e-2}
OFFICIAL_BF16 = {"value": 3e-2, "gradient": 3e-2, "decay": 6e-2}
OWN = {"value": 2e-5, "gradient": 2e-5, "decay": 1e-3}
OWN_BF16 = {"value": 2e-2, "gradient": 2e-2, "decay": 2e-2}


def build(case, dtype):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = GatedDeltaNet(**case.params["kwargs"])
    layer.load_state_dict(case.group("params"), strict=True)
    # A recorded half-precision layer holds every parameter in that format, A_log too.
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
    out.update({f"train/grad/{name}": p.grad for name, p in layer.named_parameters()})
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
    """The fixture's outputs; cache contents brought in by `Cache.from_fla`, the mask's pads left out."""
    want = case.group("out")
    want["train/dx_grad"] = want.pop("train/dx")
    want["mask_left/y"] = want["mask_left/y"][case.group("inputs")["mask_left"].bool()]
    for phase in ("prefill", "decode", "resume"):
        convs = tuple(want[name] for name in (f"{phase}/conv_state_{i}" for i in range(3)) if name in want)
        state = {"recurrent_state": want[f"{phase}/recurrent_state"], "conv_state": convs or None}
        cache = Cache.from_fla([state], seen_tokens=1)
        want[f"{phase}/recurrent_state"] = cache[0]["recurrent_state"]
        for i, conv in enumerate(cache[0]["conv_state"] or ()):
            want[f"{phase}/conv_state_{i}"] = conv
    return want


def test_the_twelve_cases_are_there():
    assert len(GOLDENS) == 12 and len(names("layer_gated_deltanet")) == 12
    assert sum(case.params["dtype"] == "torch.bfloat16" for case in GOLDENS.values()) == 1


@cases(name=list(GOLDENS))
def test_outputs_states_and_gradients_equal_the_official_layer(name):
    case = GOLDENS[name]
    half = case.params["dtype"] == "torch.bfloat16"
    dtype = torch.bfloat16 if half else torch.float32
    got, want = calls(case, build(case, dtype), dtype), recorded(case)
    assert set(got) == set(want)
    bounds = OFFICIAL_BF16 if half else OFFICIAL
    for key in want:
        assert_close(got[key], want[key], rms=bounds[kind(key)], name=key)


@cases(name=list(GOLDENS))
def test_outputs_states_and_gradients_equal_our_float64_run(name):
    case = GOLDENS[name]
    half = case.params["dtype"] == "torch.bfloat16"
    dtype = torch.bfloat16 if half else torch.float32
    got, want = calls(case, build(case, dtype), dtype), calls(case, build(case, torch.float64), torch.float64)
    bounds = OWN_BF16 if half else OWN
    for key in want:
        assert want[key].dtype == torch.float64
        assert_close(got[key], want[key], rms=bounds[kind(key)], name=key)


@cases(name=list(GOLDENS))
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
