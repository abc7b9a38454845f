"""`use_myfla` finds what to replace, never uses Triton on a CPU, and is undone completely."""

import importlib
import inspect
import logging
import sys
import warnings

import pytest
import torch

pytest.importorskip("transformers", minversion="5.15")

import transformers
from transformers.integrations import hub_kernels
from transformers.utils.import_utils import is_flash_linear_attention_available

from hf_small_models import CONFIGS, CONVOLUTIONS, OLD, build, plain_transformers, tokens
from myfla.integrations import hf_models, hf_rules
from myfla.integrations.hf_models import model_files, targets
from myfla.integrations.transformers import packed_kwargs, use_myfla
from myfla.testing import assert_close, cases, raises

FAMILIES = sorted(CONFIGS)


def module_of(family):
    return importlib.import_module(model_files()[family])


def attributes():
    """Everything that models of these families could find, by where it stands."""
    found = {}
    for family in FAMILIES:
        module = module_of(family)
        for name, value in vars(module).items():
            found[module.__name__, name] = value
            if isinstance(value, type) and value.__module__ == module.__name__:
                found.update({(module.__name__, value.__name__, key): part for key, part in vars(value).items()})
    return found


def no_drivers(*args, **kwargs):
    """What fla's functions do with CPU tensors."""
    raise RuntimeError("0 active drivers ([]). There should only be one.")


@cases(family=FAMILIES)
def test_the_rule_the_convolution_and_the_norm_of_every_family_are_replaced(family):
    found = targets(module_of(family))
    names = [target.name for target in found if target.owner is module_of(family)]
    assert {"causal_conv1d_fn", "causal_conv1d_update"} <= set(names)
    if family in CONVOLUTIONS:
        assert len(found) == len(set(names)) == 2
        return
    assert len(names) == len(set(names)) == 4
    assert len(set(names) & set(hf_models.RULES)) == 2
    layers = [target.owner.__name__ for target in found if target.owner is not module_of(family)]
    own_norm = not (OLD and family == "nemotron_h")
    assert len([name for name in layers if name.endswith(hf_models.NORM)]) == own_norm
    assert layers[1:] in ([], ["Qwen3NextGatedDeltaNet"])


def test_every_attribute_is_as_it_was_after_the_block():
    before = attributes()
    with use_myfla() as patch:
        during = attributes()
        count = sum(len(targets(module_of(family))) for family in FAMILIES)
        assert len(patch.changed) == count == sum(during[key] is not before[key] for key in before)
    after = attributes()
    assert before.keys() == after.keys()
    assert all(after[key] is before[key] for key in before)


def test_models_from_before_inside_and_after_the_block_follow_it():
    ids = tokens(1, 20)
    earlier = build("qwen3_next")
    calls = []
    with plain_transformers("qwen3_next"), torch.no_grad():
        module = module_of("qwen3_next")
        theirs = module.torch_chunk_gated_delta_rule
        module.torch_chunk_gated_delta_rule = lambda *args, **kwargs: calls.append(1) or theirs(*args, **kwargs)
        want = earlier(ids).logits
        assert len(calls) == 3
        with use_myfla():
            inside = build("qwen3_next")
            for model in (earlier, inside):
                assert_close(model(ids).logits, want, rms=1e-5)
            assert len(calls) == 3
        for model in (earlier, inside, build("qwen3_next")):
            assert_close(model(ids).logits, want, rms=1e-6)
        assert len(calls) == 12


@cases(family=[family for family in FAMILIES if not (OLD and family == "falcon_h1")])
def test_cpu_tensors_never_reach_what_transformers_would_have_called(family):
    model, ids = build(family), tokens(2, 9)
    module = module_of(family)
    with plain_transformers(family):
        want = model.generate(ids, max_new_tokens=4, do_sample=False)
    with plain_transformers(family):
        for target in targets(module):
            if target.owner is module:
                setattr(module, target.name, no_drivers)
        with raises(RuntimeError, "0 active drivers"):
            model(ids)
        with use_myfla():
            assert model.generate(ids, max_new_tokens=4, do_sample=False).tolist() == want.tolist()
            model(ids).logits.sum().backward()
        with raises(RuntimeError, "0 active drivers"):
            model(ids)


def test_with_fla_installed_the_cpu_works_inside_the_block_only():
    if not is_flash_linear_attention_available():
        pytest.skip("transformers sees no flash-linear-attention here")
    if torch.cuda.is_available():
        pytest.skip("Triton has a driver here")
    model, ids = build("qwen3_next"), tokens(1, 20)
    with raises(RuntimeError, "0 active drivers"):
        model(ids)
    with use_myfla():
        model(ids).logits.sum().backward()
    with raises(RuntimeError, "0 active drivers"):
        model(ids)


def test_other_devices_keep_what_transformers_had():
    module = module_of("qwen3_next")
    x, weight = torch.zeros(1, 4, 3, device="meta"), torch.zeros(4, 4, device="meta")
    calls = []
    with plain_transformers("qwen3_next"):
        module.causal_conv1d_fn = lambda *args, **kwargs: calls.append(kwargs)
        with use_myfla():
            module.causal_conv1d_fn(x, weight, activation="silu")
            assert calls == [{"activation": "silu"}]
        with use_myfla(devices=["meta"]):
            assert module.causal_conv1d_fn(x, weight, activation="silu").shape == x.shape
            module.causal_conv1d_fn(torch.zeros(1, 4, 3), torch.zeros(4, 4))
        assert len(calls) == 2


def test_cuda_tensors_keep_the_official_functions():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    module, device = module_of("qwen3_next"), "cuda"
    q, v, g = torch.randn(1, 64, 2, 16, device=device), torch.randn(1, 64, 2, 16, device=device), -torch.rand(1, 64, 2)
    options = dict(g=g.to(device), beta=torch.rand(1, 64, 2, device=device), use_qk_l2norm_in_kernel=True)
    want = module.torch_chunk_gated_delta_rule(q, q, v, **options)[0]
    with use_myfla():
        got = module.torch_chunk_gated_delta_rule(q, q, v, **options)[0]
    assert torch.equal(got, want)
    with use_myfla(devices=["cuda"]):
        assert_close(module.torch_chunk_gated_delta_rule(q, q, v, **options)[0], want, rms=5e-3)


def test_packed_sequences_are_refused_by_transformers_and_computed_inside_the_block():
    model, ids = build("qwen3_next"), tokens(1, 12)
    told = packed_kwargs(torch.tensor([[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6]]))
    refuses = "can't keep packed sequences apart" in inspect.getsource(hub_kernels)  # older versions mix them up
    if refuses and "fla" not in sys.modules:
        with raises(ValueError, "can't keep packed sequences apart"):
            model(ids, **told)
    with torch.no_grad(), use_myfla():
        assert_close(model(ids, **told).logits[:, 5:], model(ids[:, 5:]).logits, rms=1e-5)


def test_only_the_families_asked_for_change():
    before = module_of("qwen3_5").causal_conv1d_fn
    with use_myfla(families=["qwen3_next"]) as patch:
        assert all("qwen3_next" in name for name in patch.changed) and len(patch.changed) > 4
        assert module_of("qwen3_5").causal_conv1d_fn is before


def test_one_call_holds_until_it_is_undone():
    patch = use_myfla(families=["qwen3_next"])
    try:
        assert module_of("qwen3_next").causal_conv1d_fn.patch is patch
    finally:
        patch.undo()
    assert not hasattr(module_of("qwen3_next").causal_conv1d_fn, "patch")


def test_one_log_line_says_what_computes_where(caplog):
    with caplog.at_level(logging.INFO, "myfla"), use_myfla(families=["qwen3_next"]):
        pass
    messages = [record.getMessage() for record in caplog.records]
    told = ["not known here" in message for message in messages]
    assert told == [True] * len(hf_models.unknown_layers(module_of("qwen3_next"))) + [False]
    assert messages[-1:] == [
        "myfla computes on cpu in transformers.models.qwen3_next.modeling_qwen3_next"
    ]


@cases(name=["qwen3_nxt", "llama"])
def test_an_unknown_family_is_refused_with_the_known_ones(name):
    hint = "did you mean 'qwen3_next'?" if name == "qwen3_nxt" else "olmo_hybrid"
    with raises(ValueError, "use_myfla: families", "that these ops serve", repr(name), hint):
        use_myfla(families=[name])


@cases(name=["gpu", "cuda:0", "", 3])
def test_an_unknown_device_type_is_refused(name):
    with raises(ValueError, "use_myfla: devices must be device types such as 'cpu' or 'cuda'", repr(name)):
        use_myfla(devices=[name])


def test_a_device_type_may_come_alone():
    with use_myfla(devices="cpu", families=["qwen3_next"]) as patch:
        assert patch.devices == ("cpu",)


REMOTE = """
from torch import nn
from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule as chunk_gated_delta_rule


class Mixer(nn.Module):
    def forward(self, q, k, v, g, beta):
        return {call}(q, k, v, g=g, beta=beta)[0]
"""


def remote_code(monkeypatch, tmp_path, call):
    """A module as transformers makes it from the code of a checkpoint."""
    name = "transformers_modules.acme.modeling_acme"
    path = tmp_path / "modeling_acme.py"
    path.write_text(REMOTE.format(call=call))
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_code_that_came_with_a_checkpoint_is_covered(monkeypatch, tmp_path):
    module = remote_code(monkeypatch, tmp_path, "chunk_gated_delta_rule")
    with use_myfla() as patch:
        assert "transformers_modules.acme.modeling_acme.chunk_gated_delta_rule" in patch.changed
        assert hasattr(module.chunk_gated_delta_rule, "patch")
    assert not hasattr(module.chunk_gated_delta_rule, "patch")


def test_a_transformers_that_binds_its_functions_to_layers_is_refused(monkeypatch, tmp_path):
    module = remote_code(monkeypatch, tmp_path, "self.chunk_gated_delta_rule")
    monkeypatch.setattr(hf_models, "model_files", lambda: {"qwen3_next": module.__name__})
    version = transformers.__version__
    with raises(ImportError, version, f"{module.__name__} binds its functions", "5.15 or newer", "myfla[hf]"):
        use_myfla()


@cases(call=["chunk_gated_delta_rule", "self.chunk_gated_delta_rule"])
def test_a_family_of_a_newer_transformers_is_a_warning(call, monkeypatch, tmp_path):
    module, files = remote_code(monkeypatch, tmp_path, call), dict(model_files())
    monkeypatch.delitem(sys.modules, module.__name__)  # part of transformers, not of a checkpoint
    monkeypatch.setitem(sys.modules, "new_family", module)
    monkeypatch.setattr(hf_models, "model_files", lambda: {**files, "acme": "new_family"})
    covered = not call.startswith("self")
    told = "are replaced by their names" if covered else "is left"
    with pytest.warns(UserWarning, match=f"has the family 'acme'.*not tested with.*{told}.*families=") as seen:
        patch = use_myfla()
    with patch:
        assert hasattr(module.chunk_gated_delta_rule, "patch") == covered
        assert {target.name for target in targets(module_of("qwen3_next"))} <= {
            name.rsplit(".", 1)[1] for name in patch.changed if "qwen3_next" in name}
    assert [warning.filename for warning in seen] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        use_myfla(families=["qwen3_next"]).undo()
        if covered:
            use_myfla(families=["acme"]).undo()


def test_a_transformers_without_such_models_is_refused(monkeypatch):
    monkeypatch.setattr(hf_models, "model_files", lambda: {})
    with raises(ImportError, "has no model that these ops serve", "5.15 or newer", "myfla[hf]"):
        use_myfla()


def test_a_refused_call_changes_nothing():
    before = module_of("qwen3_next").torch_chunk_gated_delta_rule
    with raises(ValueError, "families"):
        use_myfla(families=["qwen3_next", "llama"])
    assert module_of("qwen3_next").torch_chunk_gated_delta_rule is before


def test_the_replacements_are_the_ops_of_this_package():
    x, g = torch.randn(1, 3, 1, 2), torch.zeros(1, 3, 1)
    with use_myfla(families=["qwen3_next"]):
        got = module_of("qwen3_next").torch_chunk_gated_delta_rule(x, x, x, g=g, beta=g + 1)[0]
    assert torch.equal(got, hf_rules.chunk_gated_delta_rule(x, x, x, g=g, beta=g + 1)[0])
