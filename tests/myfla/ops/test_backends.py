"""Backends: all compute the same function, choices are honoured or refused with a reason, imports never fail."""

import logging
import os
import re
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from app_runs import ROOT, run_python
from myfla.backends import AUTO_RULE, BACKENDS, BackendError, choice, compiler, describe, official, set_backend, summary
from myfla.backends.choice import why_not
from myfla.layers import GatedDeltaNet, RWKV7Attention
from myfla.models import load_backbone
from myfla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule
from myfla.ops.generalized_delta_rule.dplr import chunk_dplr_delta_rule, fused_recurrent_dplr_delta_rule
from myfla.ops.rwkv7 import chunk_rwkv7, fused_mul_recurrent_rwkv7, fused_recurrent_rwkv7
from myfla.testing import assert_close, cases
from myfla.utils.native import missing_native
from small_models import KINDS, small_model

D = torch.float64
CPU = torch.device("cpu")
ON_CPU = "torch" if missing_native() else "native"
OFFSETS = torch.tensor([0, 0, 20, 21, 60, 60])
needs_compiler = pytest.mark.skipif(compiler.compiler_problem("cpu") is not None, reason="no working torch.compile")


def gated(op):
    def run(cu, backend):
        batch, rows = (2, 2) if cu is None else (1, len(cu) - 1)
        q, k = torch.randn(2, batch, 60, 2, 4, dtype=D)
        v, a = torch.randn(batch, 60, 4, 3, dtype=D), torch.randn(batch, 60, 4, dtype=D)
        state = torch.randn(rows, 4, 3, 4, dtype=D)
        leaves = [x.requires_grad_() for x in (q, k, v, a, state, torch.rand(4, dtype=D), torch.rand(4, dtype=D))]
        out = op(leaves[0], leaves[1], leaves[2], g=leaves[3], beta=-a.detach(), initial_state=leaves[4],
                 output_final_state=True, use_qk_l2norm_in_kernel=True, use_gate_in_kernel=True, A_log=leaves[5],
                 dt_bias=leaves[6], use_beta_sigmoid_in_kernel=True, allow_neg_eigval=True, state_v_first=True,
                 cu_seqlens=cu, backend=backend)  # fmt: skip
        return out, leaves

    return run


def channels(op, reads=lambda kk, a: (-kk, kk * a), **more):
    def run(cu, backend):
        batch, rows = (2, 2) if cu is None else (1, len(cu) - 1)
        r, w, k, kk, a = torch.randn(5, batch, 60, 2, 4, dtype=D)
        v, state = torch.randn(batch, 60, 2, 3, dtype=D), torch.randn(rows, 2, 4, 3, dtype=D)
        leaves = [x.requires_grad_() for x in (r, w, k, v, kk, a, state)]
        removed = reads(F.normalize(leaves[4], dim=-1), leaves[5].sigmoid())
        out = op(leaves[0], -F.softplus(leaves[1]), leaves[2], leaves[3], *removed, scale=0.7, initial_state=leaves[6],
                 output_final_state=True, cu_seqlens=cu, backend=backend, **more)  # fmt: skip
        return out, leaves

    return run


def dplr(op, **more):
    return channels(lambda r, w, k, v, a, b, **options: op(r, k, v, a, b, w, **options), **more)


FORMS = {
    "chunk_gated_delta_rule": gated(chunk_gated_delta_rule),
    "fused_recurrent_gated_delta_rule": gated(fused_recurrent_gated_delta_rule),
    "chunk_rwkv7": channels(chunk_rwkv7),
    "fused_recurrent_rwkv7": channels(fused_recurrent_rwkv7),
    "fused_mul_recurrent_rwkv7": channels(fused_mul_recurrent_rwkv7, lambda kk, a: (kk, a), reverse=True),
    "chunk_dplr_delta_rule": dplr(chunk_dplr_delta_rule),
    "fused_recurrent_dplr_delta_rule": dplr(fused_recurrent_dplr_delta_rule, reverse=True),
}
LAYERS = {
    "gated_deltanet": lambda **more: GatedDeltaNet(hidden_size=8, head_dim=4, num_heads=2, layer_idx=0, **more),
    "rwkv7": lambda **more: RWKV7Attention(hidden_size=8, head_dim=4, layer_idx=0, num_hidden_layers=2, **more),
}


def result_and_grads(name, cu, backend):
    torch.manual_seed(0)
    (o, final), leaves = FORMS[name](cu, backend)
    (o.square().sum() + final.sum()).backward()
    return [o, final, *(x.grad for x in leaves)]


def same(name, backend, packed):
    cu = OFFSETS if packed else None
    for mine, theirs in zip(result_and_grads(name, cu, backend), result_and_grads(name, cu, "torch")):
        assert_close(mine, theirs, rms=1e-11)


@cases(name=list(FORMS), packed=[False, True])
def test_the_naive_backend_is_the_same_function(name, packed):
    same(name, "naive", packed)


@needs_compiler
@cases(name=["chunk_gated_delta_rule", "fused_mul_recurrent_rwkv7"])
def test_the_compiled_backend_is_the_same_function(name):
    same(name, "compiled", True)


@needs_compiler
@pytest.mark.slow
@cases(name=list(FORMS), packed=[False, True])
def test_every_compiled_op_is_the_same_function(name, packed):
    same(name, "compiled", packed)


@cases(name=list(FORMS), packed=[False, True])
def test_official_kernels_are_told_everything(name, packed, monkeypatch):
    """This package's ops stand in for the official ones, whose names and defaults they have."""
    here = {op.__name__: op for op in (chunk_gated_delta_rule, fused_recurrent_gated_delta_rule, chunk_dplr_delta_rule,
                                       fused_recurrent_dplr_delta_rule)}  # fmt: skip
    called = []

    def kernel(which):
        called.append(which.name)
        return here[which.name]

    monkeypatch.setattr(official, "kernel", kernel)
    monkeypatch.setattr(official, "problem", lambda *given: None)
    monkeypatch.setattr(choice, "check_backend", lambda who, backend: backend)
    same(name, "fla", packed)
    assert len(called) == 1


@cases(kind=list(LAYERS))
def test_layers_hand_their_choice_down(kind, caplog, monkeypatch):
    monkeypatch.setattr(choice, "_told", set())
    layer, x = LAYERS[kind](backend="naive"), torch.randn(2, 9, 8)
    with caplog.at_level(logging.INFO, "myfla"):
        for _ in range(3):
            layer(x)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1 and lines[0].endswith("on cpu: computed by backend naive (asked for: naive)")
    assert "backend=naive" in repr(layer)
    assert set_backend(layer, "auto") == 1 and f"backend={summary('auto', CPU)}" in repr(layer)
    with caplog.at_level(logging.INFO, "myfla"):
        layer(x)
    assert f"computed by backend {ON_CPU} (asked for: auto)" in caplog.records[-1].getMessage()


@cases(kind=list(LAYERS))
def test_an_unknown_backend_is_refused_with_the_known_ones(kind):
    known = "auto, naive, torch, native, compiled, fla"
    with pytest.raises(BackendError, match=rf"backend must be one of {known}; got 'troch'.*'torch'"):
        LAYERS[kind](backend="troch")
    x = torch.ones(1, 2, 1, 2)
    with pytest.raises(BackendError, match="chunk_rwkv7: backend must be one of"):
        chunk_rwkv7(x, x, x, x, x, x, backend=None)
    with pytest.raises(BackendError, match="set_backend: backend"):
        set_backend(LAYERS[kind](), "cuda")
    with pytest.raises(ValueError, match="set_backend: module must hold a layer of myfla; got 'Linear'"):
        set_backend(torch.nn.Linear(1, 1), "torch")


def test_the_naive_backend_refuses_what_it_does_not_know():
    x = torch.ones(1, 2, 1, 2)
    with pytest.raises(BackendError, match=r"has neither gk.*'naive'.*or 'torch'"):
        fused_recurrent_gated_delta_rule(x, x, x, gk=x, backend="naive")


def test_fla_on_the_cpu_is_refused_with_the_reason(monkeypatch):
    monkeypatch.setattr(official, "import_problem", lambda: None)
    layer = LAYERS["gated_deltanet"](backend="fla")
    with pytest.raises(BackendError, match=r"run on CUDA devices only.*on cpu.*use backend='auto' or"):
        layer(torch.randn(1, 3, 8))


def test_a_missing_fla_is_refused_at_construction(monkeypatch):
    official.import_problem.cache_clear()
    monkeypatch.setattr(official.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BackendError, match=r"flash-linear-attention is not installed; pip install"):
        LAYERS["rwkv7"](backend="fla")
    official.import_problem.cache_clear()


def test_an_old_fla_is_refused(monkeypatch):
    official.import_problem.cache_clear()
    monkeypatch.setattr(official.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(official.importlib, "import_module", lambda name: SimpleNamespace(__version__="0.4.1"))
    assert "fla 0.4.1 is installed and 0.6.0 or newer is needed" in official.import_problem()
    official.import_problem.cache_clear()


def test_a_broken_fla_breaks_nothing_but_its_own_choice(tmp_path):
    for name in ("fla", "triton"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise ValueError('key contains names that are no arguments')")
    script = tmp_path / "use.py"
    script.write_text(
        "import torch, myfla, myfla.layers, myfla.models, encoders\n"
        "layer = myfla.layers.GatedDeltaNet(hidden_size=8, head_dim=4, num_heads=1)\n"
        "assert layer(torch.zeros(1, 3, 8))[0].shape == (1, 3, 8) and 'fla' not in __import__('sys').modules\n"
        "try:\n    myfla.layers.GatedDeltaNet(hidden_size=8, head_dim=4, num_heads=1, backend='fla')\n"
        "except ValueError as error:\n    print(error)\n"
    )
    paths = os.pathsep.join([str(tmp_path), str(ROOT / "src"), str(ROOT / "libs")])
    done = run_python(tmp_path, str(script), environment={**os.environ, "PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr
    assert "fla does not import: ValueError: key contains names that are no arguments" in done.stdout


def test_without_a_compiler_compiled_is_refused_by_name(monkeypatch):
    monkeypatch.delattr(torch, "compile", raising=False)
    compiler.compiler_problem.cache_clear()
    version = re.escape(torch.__version__)
    with pytest.raises(BackendError, match=rf"cannot be used here: torch\.compile.*PyTorch 2\.3.*{version}"):
        LAYERS["gated_deltanet"](backend="compiled")
    compiler.compiler_problem.cache_clear()


@needs_compiler
def test_a_compiler_that_fails_is_refused_with_what_it_said(monkeypatch):
    def fail(*given, **options):
        raise RuntimeError("no C++ compiler found")

    compiler.compiler_problem.cache_clear()
    monkeypatch.setattr(torch, "compile", fail)
    x = torch.ones(1, 2, 1, 2)
    with pytest.raises(BackendError, match=r"torch.compile does not work on cpu: RuntimeError: no C"):
        chunk_rwkv7(x, -x, x, x, x, x, backend="compiled")
    compiler.compiler_problem.cache_clear()


@cases(triton=["3.3.1", "3.4.0", "3.6.0", "3.7.0", "3.7.1", "3.9.0"], capability=[(8, 0), (9, 0), (10, 0)])
def test_the_gated_backward_is_unsound_on_hopper_with_some_tritons(triton, capability):
    unsound = capability == (9, 0) and triton in ("3.4.0", "3.6.0", "3.7.0")
    found = official.unsound_gated_backward(triton, capability)
    assert (found is not None) == unsound
    if unsound:
        assert triton in found and "upgrade triton to 3.7.1" in found


class Remote:
    """What the rule looks at of a CUDA tensor."""

    def __init__(self, dtype=torch.bfloat16, requires_grad=False, key=64, tokens=3):
        self.device, self.dtype, self.requires_grad = torch.device("cuda", 0), dtype, requires_grad
        self.shape = (1, tokens, 2, key)

    def numel(self):
        return self.shape[1]


@cases(backend=["auto", "fla"])
def test_the_rule_of_auto_and_the_limits_of_the_kernels(backend, monkeypatch):
    monkeypatch.setattr(official, "import_problem", lambda: None)
    monkeypatch.setattr(official, "_triton_version", lambda: "3.6.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    chunk, recurrent = official.CHUNK_GATED_DELTA_RULE, official.RECURRENT_GATED_DELTA_RULE

    def reason(kernel, **of):
        x = Remote(**of)
        return why_not(backend, kernel, x, x)

    assert reason(chunk) is None and reason(recurrent) is None and reason(chunk, dtype=torch.float16) is None
    assert "Hopper" in reason(chunk, requires_grad=True)
    assert "no backward" in reason(recurrent, requires_grad=True)
    assert reason(official.CHUNK_DPLR, requires_grad=True) is None
    assert "at most 256" in reason(chunk, key=512) and reason(recurrent, key=512) is None
    assert "empty" in reason(chunk, tokens=0)
    assert "float64" in reason(chunk, dtype=torch.float64)
    assert (reason(chunk, dtype=torch.float32) is None) == (backend == "fla")


def test_describe_names_every_backend_and_the_rule():
    told = describe("cpu")
    assert tuple(told) == BACKENDS
    assert told["auto"].startswith(summary("auto", CPU)) and AUTO_RULE in told["auto"]
    assert "CUDA devices only" in told["fla"] and told["torch"] == "usable"
    assert describe("cpu", probe=True)["compiled"] == (compiler.compiler_problem("cpu") or "usable")


@cases(kind=KINDS)
def test_models_take_a_backend_that_is_no_part_of_their_files(kind, tmp_path):
    small_model(kind).save_pretrained(tmp_path / "one")
    model = load_backbone(tmp_path / "one", backend="naive")
    assert {layer.attn.backend for layer in model.layers} == {"naive"}
    model.save_pretrained(tmp_path / "two")
    assert "backend" not in (tmp_path / "two" / "config.json").read_text()
    assert {layer.attn.backend for layer in load_backbone(tmp_path / "two").layers} == {"auto"}
    assert set_backend(model, "torch") == len(model.layers)
