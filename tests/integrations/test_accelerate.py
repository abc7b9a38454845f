"""Models whose weights accelerate keeps elsewhere and brings module by module, with `use_myfla` at work."""

import copy

import pytest
import torch

pytest.importorskip("transformers", minversion="5.15")
accelerate = pytest.importorskip("accelerate")

from hf_small_models import CONFIGS, build, in_float64, plain_transformers, tokens  # noqa: E402
from myfla.integrations.transformers import use_myfla  # noqa: E402
from myfla.testing import assert_close, cases  # noqa: E402

FAMILIES = sorted(CONFIGS)
CPU = torch.device("cpu")


def offloaded(model, how, folder):
    """The same model; none of its weights is where it computes until a module is called."""
    model = copy.deepcopy(model)
    if how == "disk":
        accelerate.disk_offload(model, str(folder), execution_device=CPU)
    else:
        accelerate.cpu_offload(model, execution_device=CPU)
    assert all(weight.is_meta for weight in model.parameters())
    return model


def theirs_run(family, model, ids):
    """Whether transformers alone computes the offloaded model: not where a layer reads a module's weight directly."""
    try:
        with plain_transformers(family):
            model(ids, use_cache=False)
    except (NotImplementedError, RuntimeError) as error:
        assert "meta" in str(error), error
        return False
    return True


def check_offloaded(family, how, gradients, before, tmp_path):
    """``before``: offloaded before the functions are replaced, not after."""
    model, ids = build(family).double().train(gradients), tokens(2, 20)
    with torch.set_grad_enabled(gradients), in_float64(family):
        want = model(ids, use_cache=False).logits.detach()
        if not theirs_run(family, offloaded(model, how, tmp_path / "theirs"), ids):
            pytest.skip("this version of transformers does not run it offloaded either")
        if before:
            model = offloaded(model, how, tmp_path)
        with use_myfla():
            model = model if before else offloaded(model, how, tmp_path)
            got = model(ids, use_cache=False).logits.detach()
    assert_close(got, want, rms=1e-12)


@cases(family=FAMILIES)
def test_an_offloaded_model_of_every_family_computes_what_it_does_at_home(family, tmp_path):
    check_offloaded(family, "cpu", True, True, tmp_path)


@cases(how=["cpu", "disk"], gradients=[True, False], before=[True, False])
def test_an_offloaded_model_computes_what_it_does_at_home(how, gradients, before, tmp_path):
    check_offloaded("qwen3_next", how, gradients, before, tmp_path)


@cases(how=["cpu", "disk"])
def test_an_offloaded_model_generates_the_same_tokens(how, tmp_path):
    model, ids = build("qwen3_next"), tokens(2, 9)
    with use_myfla():
        want = model.generate(ids, max_new_tokens=6, do_sample=False)
        got = offloaded(model, how, tmp_path).generate(ids, max_new_tokens=6, do_sample=False)
    assert torch.equal(got, want)
