"""The rules in transformers' calling convention: equal to transformers' functions, and at least as close to float64."""

import inspect

import pytest
import torch

pytest.importorskip("transformers", minversion="5.15")

from transformers.models.qwen3_next import modeling_qwen3_next as qwen

from myfla.integrations import hf_rules
from myfla.testing import assert_close, cases, raises, rms_error


def with_heads_repeated(function):
    """Before 5.23 transformers repeated the key heads outside of the function."""
    function = inspect.unwrap(function)

    def call(query, key, value, **options):
        query, key = (x.repeat_interleave(value.shape[2] // x.shape[2], dim=2) for x in (query, key))
        return function(query, key, value, **options)

    return call


PAIRS = {
    "chunk": (hf_rules.chunk_gated_delta_rule, with_heads_repeated(qwen.torch_chunk_gated_delta_rule)),
    "recurrent": (hf_rules.recurrent_gated_delta_rule, with_heads_repeated(qwen.torch_recurrent_gated_delta_rule)),
}
try:
    from transformers.models.kimi_linear import modeling_kimi_linear as kimi
except ModuleNotFoundError:  # the family came with a later version
    kimi = None
else:
    PAIRS["kimi chunk"] = (hf_rules.chunk_kimi_delta_attention, inspect.unwrap(kimi.chunk_kimi_delta_attention))
    PAIRS["kimi recurrent"] = (
        hf_rules.recurrent_kimi_delta_attention, inspect.unwrap(kimi.recurrent_kimi_delta_attention))
NAMES = ("query", "key", "value", "g", "beta", "initial_state")
TRUTH = {"chunk": "recurrent", "kimi chunk": "kimi recurrent"}
RULES = [rule for rule in TRUTH if rule in PAIRS]


def inputs(rule, T=70, decay=0.3, heads=(2, 4), dtype=torch.float32):
    """Leaves by name; Kimi's rule has as many value heads as key heads and a decay for each channel."""
    B, (H, HV), K, V = 2, heads, 8, 12
    H = HV if "kimi" in rule else H
    shapes = {
        "query": (B, T, H, K), "key": (B, T, H, K), "value": (B, T, HV, V), "g": (B, T, HV),
        "beta": (B, T, HV), "initial_state": (B, HV, K, V),
    }  # fmt: skip
    if "kimi" in rule:
        shapes["g"] = (B, T, H, K)
    found = {name: torch.randn(shape) for name, shape in shapes.items()}
    found["g"], found["beta"] = -decay * found["g"].abs(), found["beta"].sigmoid()
    return {name: x.to(dtype).requires_grad_() for name, x in found.items()}


def call(function, leaves, **options):
    """Output, final state, and the gradients of a random projection of both."""
    q, k, v = (leaves[name] for name in NAMES[:3])
    rest = {name: leaves[name] for name in NAMES[3:]}
    o, state = function(q, k, v, **rest, output_final_state=True, use_qk_l2norm_in_kernel=True, **options)
    generator = torch.Generator().manual_seed(3)
    loss = sum((x * torch.randn(x.shape, generator=generator).to(x)).sum() for x in (o, state))
    return [o.detach(), state.detach(), *torch.autograd.grad(loss, list(leaves.values()))]


@cases(rule=sorted(PAIRS), T=[1, 63, 130])
def test_outputs_states_and_gradients_equal_transformers(rule, T):
    leaves = inputs(rule, T)
    ours, theirs = PAIRS[rule]
    for name, got, want in zip(("o", "state", *NAMES), call(ours, leaves), call(theirs, leaves)):
        assert got.dtype == want.dtype
        assert_close(got, want, rms=1e-5, name=name)


@cases(rule=RULES, decay=[0.01, 0.3, 5.0])
def test_the_gradients_are_as_close_to_float64_as_transformers(rule, decay):
    leaves = inputs(rule, 200, decay)
    ours, theirs = (call(function, leaves) for function in PAIRS[rule])
    truth = call(PAIRS[TRUTH[rule]][0], {name: x.detach().double().requires_grad_() for name, x in leaves.items()})
    for name, got, other, want in zip(("o", "state", *NAMES), ours, theirs, truth):
        assert want.dtype == torch.float64
        assert rms_error(got, want) < max(1.5 * rms_error(other, want), 1e-6), name


@cases(rule=sorted(PAIRS), told=["cu_seqlens", "cu_seq_lens_q", "seq_idx"])
def test_packed_sequences_equal_the_sequences_alone(rule, told):
    leaves = {name: x.detach()[:1] for name, x in inputs(rule, 30).items() if name != "initial_state"}
    offsets = torch.tensor([0, 7, 8, 30])
    numbers = torch.repeat_interleave(torch.arange(3), offsets.diff())[None]
    q, k, v = (leaves[name] for name in NAMES[:3])
    function, options = PAIRS[rule][0], dict(use_qk_l2norm_in_kernel=True, output_final_state=True)
    packed = {told: numbers if told == "seq_idx" else offsets}
    o, states = function(q, k, v, g=leaves["g"], beta=leaves["beta"], **options, **packed)
    for n in range(3):
        part = {name: x[:, offsets[n] : offsets[n + 1]] for name, x in leaves.items()}
        q, k, v = (part[name] for name in NAMES[:3])
        want, state = function(q, k, v, g=part["g"], beta=part["beta"], **options)
        assert_close(o[:, offsets[n] : offsets[n + 1]], want, rms=2e-6)
        assert_close(states[n : n + 1], state, rms=2e-6)


@cases(rule=sorted(PAIRS))
def test_keywords_of_other_functions_are_passed_over_and_nothing_is_written(rule):
    leaves = {name: x.detach() for name, x in inputs(rule, 1).items()}
    before = {name: x.clone() for name, x in leaves.items()}
    rest = {name: leaves[name] for name in NAMES[3:]}
    q, k, v = (leaves[name] for name in NAMES[:3])
    o, state = PAIRS[rule][0](q, k, v, **rest, output_router_logits=True, position_ids=None, cu_seqlens=None)
    assert o.shape == v.shape and state is None
    assert all(torch.equal(leaves[name], before[name]) for name in leaves)


@cases(rule=sorted(PAIRS))
def test_half_precision_keeps_the_formats_of_transformers(rule):
    leaves = inputs(rule, 20, dtype=torch.bfloat16)
    leaves["initial_state"] = leaves["initial_state"].detach().float().requires_grad_()
    ours, theirs = (call(function, leaves) for function in PAIRS[rule])
    assert [x.dtype for x in ours] == [x.dtype for x in theirs]
    assert ours[0].dtype == torch.bfloat16 and ours[1].dtype == torch.float32
    assert_close(ours[0], theirs[0], rms=1e-2)


@cases(rule=["chunk", "recurrent"])
def test_options_of_the_op_reach_it(rule):
    leaves = {name: x.detach() for name, x in inputs(rule, 5).items()}
    q, k, v = (leaves[name] for name in NAMES[:3])
    plain = PAIRS[rule][0](q, k, v, g=leaves["g"], beta=leaves["beta"])[0]
    scaled = PAIRS[rule][0](q, k, v, g=leaves["g"], beta=leaves["beta"], scale=2 * 8**-0.5)[0]
    assert_close(scaled, 2 * plain, rms=1e-6)


@cases(chunk_size=[4, 64, 128])
def test_any_chunk_size_of_transformers_gives_the_same(chunk_size):
    leaves = {name: x.detach() for name, x in inputs("chunk", 13).items()}
    q, k, v = (leaves[name] for name in NAMES[:3])
    ours, theirs = PAIRS["chunk"]
    options = dict(g=leaves["g"], beta=leaves["beta"], chunk_size=chunk_size)
    assert_close(ours(q, k, v, **options)[0], theirs(q, k, v, **options)[0], rms=1e-5)


@cases(rule=RULES)
def test_packed_rows_of_a_batch_are_refused_not_mixed(rule):
    leaves = {name: x.detach() for name, x in inputs(rule, 6).items()}
    q, k, v = (leaves[name] for name in NAMES[:3])
    with raises(ValueError, "cu_seqlens", "batch size 2"):
        PAIRS[rule][0](q, k, v, g=leaves["g"], beta=leaves["beta"], seq_idx=torch.zeros(2, 6, dtype=torch.int32))
