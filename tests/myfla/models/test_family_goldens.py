"""The wider family's models against the recorded official ones: logits, loss, gradients, generated tokens."""

import torch

from goldens import load
from myfla.models.auto import MODELS
from myfla.testing import assert_close, cases

GOLDENS = load("models_family")
KINDS = [kind for kind in GOLDENS if kind in MODELS]
DECAYS = ("A_log", "dt_bias")


def build(kind, dtype=None):
    config_class, _, model_class = MODELS[kind]
    dtype = dtype or (torch.bfloat16 if "bfloat16" in GOLDENS[kind].params["dtype"] else torch.float32)
    model = model_class(config_class.from_dict(GOLDENS[kind].params["config"]), dtype=dtype)
    model.load_state_dict(GOLDENS[kind].group("params"), strict=True)
    return model.to(dtype)


def trained(kind, dtype=None):
    model = build(kind, dtype).train()
    ids = GOLDENS[kind].group("inputs")["ids"]
    out = model(ids, labels=ids)
    out.loss.backward()
    return out, {name: parameter.grad for name, parameter in model.named_parameters()}


def bounds(kind):
    """Of logits and of gradients: the official kernels' own distance from float64, rounded up."""
    return (2e-2, 3e-2) if "bfloat16" in GOLDENS[kind].params["dtype"] else (1.5e-3, 5e-3)


def test_all_cases_are_there():
    assert sorted(GOLDENS) == ["delta_net", "gated_deltaproduct", "kda"]


@cases(kind=KINDS)
def test_logits_and_loss_equal_the_official_ones(kind):
    out, _ = trained(kind)
    want, bound = GOLDENS[kind].group("out"), bounds(kind)[0]
    assert_close(out.logits, want["logits"], rms=bound, name="logits")
    assert abs(out.loss.item() - want["loss"].item()) <= bound * want["loss"].item() / 10
    with torch.no_grad():
        logits = build(kind).eval()(GOLDENS[kind].group("inputs")["ids"]).logits
    assert_close(logits, want["eval_logits"], rms=bound, name="eval_logits")


@cases(kind=KINDS)
def test_gradients_equal_the_official_ones(kind):
    want, bound = GOLDENS[kind].group("out"), bounds(kind)[1]
    _, grads = trained(kind)
    assert {f"grad/{name}" for name in grads} == {name for name in want if name.startswith("grad/")}
    for name, grad in grads.items():
        assert_close(grad, want[f"grad/{name}"], rms=4e-2 if name.endswith(DECAYS) else bound, name=name)


@cases(kind=KINDS)
def test_gradients_equal_their_float64_run(kind):
    _, got = trained(kind, torch.float32)
    _, want = trained(kind, torch.float64)
    for name, grad in got.items():
        assert_close(grad, want[name], rms=1e-5, largest=1e-4, name=name)


@cases(kind=KINDS, use_cache=[True, False])
def test_generated_tokens_equal_the_official_ones(kind, use_cache):
    """Up to where two logits lie so near that their number format cannot tell them apart."""
    ids, want = GOLDENS[kind].group("inputs")["ids"], GOLDENS[kind].group("out")["generated"]
    model = build(kind).eval()
    got = model.generate(ids[:, :20], max_new_tokens=24, eos_token_id=None, use_cache=use_cache)
    assert got.shape == want.shape
    with torch.no_grad():
        logits = model(want).logits.float()
    spacing = 2 ** -6 if model.dtype == torch.bfloat16 else 0.0
    for row, other, scores in zip(got, want, logits):
        differ = (row != other).nonzero()
        if len(differ):
            at = int(differ[0])
            first, second = scores[at - 1, row[at]], scores[at - 1, other[at]]
            assert abs(first - second) <= spacing * first.abs(), (at, first, second)
