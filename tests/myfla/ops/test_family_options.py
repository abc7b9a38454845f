"""Every option of the family's official ops, against the float64 token loop of what it means."""

from types import MappingProxyType
from typing import Any, Callable, Dict, Mapping, NamedTuple, Tuple

import pytest
import torch
import torch.nn.functional as F

import family
from myfla.ops.comba import naive_chunk_comba, naive_recurrent_comba
from myfla.ops.delta_rule import fused_chunk_delta_rule
from myfla.ops.delta_rule.naive import delta_rule_chunkwise, delta_rule_parallel, delta_rule_recurrence
from myfla.ops.gdn2 import chunk_gdn2, naive_chunk_gdn2, naive_recurrent_gdn2
from myfla.ops.kda import chunk_kda, naive_chunk_kda, naive_recurrent_kda
from myfla.ops.simple_gla import (
    chunk_simple_gla,
    fused_chunk_simple_gla,
    naive_chunk_simple_gla,
    naive_parallel_simple_gla,
    naive_recurrent_simple_gla,
    parallel_simple_gla,
)
from myfla.testing import assert_close, cases, raises

CU = torch.tensor([0, 0, 7, 8, 37])
BOTH = ("chunk", "recurrent")
Given = Dict[str, torch.Tensor]


class Option(NamedTuple):
    """An option, and what it means for the member's plain call."""

    member: str
    forms: Tuple[str, ...] = BOTH
    keywords: Mapping[str, Any] = MappingProxyType({})
    more: Mapping[str, Callable[[], torch.Tensor]] = MappingProxyType({})  # inputs of its own, which get gradients too
    without: Tuple[str, ...] = ()  # inputs that are left out
    means: Callable[[Given], Given] = dict  # inputs as given -> inputs of the plain call
    v_first: bool = False
    backwards: bool = False
    truth: Mapping[str, Any] = MappingProxyType({})


def draw(*shape):
    return lambda: torch.randn(*shape, dtype=torch.float64)


def gate(x, bound=None):
    """KDA's decay gate, whose parameters are not handed on."""
    raw, rest = x["g"], {name: t for name, t in x.items() if name not in ("A_log", "dt_bias")}
    raw = raw + (x["dt_bias"].view(raw.shape[2:]) if "dt_bias" in x else 0)
    slope = x["A_log"].exp().unsqueeze(-1) if "A_log" in x else 1.0
    return {**rest, "g": -slope * F.softplus(raw) if bound is None else bound * (slope * raw).sigmoid()}


def strengths(x, factor):
    return {**x, "beta": factor * x["beta"].sigmoid()}


GATE = dict(A_log=draw(4), dt_bias=draw(32))
OPTIONS = {
    "delta beta for each value channel": Option(
        "delta_rule", ("recurrent",), more={"beta": draw(2, 37, 4, 12)}),
    "delta scale": Option("delta_rule", keywords={"scale": 0.3}, truth={"scale": 0.3}),
    "product without decay": Option(
        "gated_delta_product", keywords={"g": None}, without=("g",)),
    "product scale": Option("gated_delta_product", keywords={"scale": 0.3}, truth={"scale": 0.3}),
    "product normalised": Option(
        "gated_delta_product", keywords={"use_qk_l2norm_in_kernel": True}, truth={"l2norm": True}),
    "comba without beta": Option(
        "comba", without=("beta",), means=lambda x: {**x, "beta": torch.ones_like(x["g"])}),
    "comba erases its keys": Option("comba", keywords={"p": None}, without=("p",), means=lambda x: {**x, "p": x["k"]}),
    "comba scale": Option("comba", keywords={"scale": 0.3}, truth={"scale": 0.3}),
    "kda gate": Option("kda", keywords={"use_gate_in_kernel": True}, more=GATE, means=gate),
    "kda gate without bias": Option(
        "kda", keywords={"use_gate_in_kernel": True}, more={"A_log": draw(4)}, means=gate),
    "kda bounded gate": Option(
        "kda", keywords={"use_gate_in_kernel": True, "lower_bound": -3.0}, more=GATE, means=lambda x: gate(x, -3.0)),
    "kda bounded gate without A_log": Option(
        "kda", keywords={"use_gate_in_kernel": True, "lower_bound": -3.0}, more={"dt_bias": draw(32)},
        means=lambda x: gate(x, -3.0)),
    "kda safe gate": Option(
        "kda", ("chunk",), {"use_gate_in_kernel": True, "lower_bound": -5.0, "safe_gate": True}, GATE,
        means=lambda x: gate(x, -5.0)),
    "kda bound without gate": Option("kda", keywords={"lower_bound": -3.0}),
    "kda sigmoid": Option(
        "kda", keywords={"use_beta_sigmoid_in_kernel": True}, more={"beta": draw(2, 37, 4)},
        means=lambda x: strengths(x, 1)),
    "kda negative eigenvalues": Option(
        "kda", keywords={"use_beta_sigmoid_in_kernel": True, "allow_neg_eigval": True}, more={"beta": draw(2, 37, 4)},
        means=lambda x: strengths(x, 2)),
    "kda value first": Option("kda", keywords={"state_v_first": True}, v_first=True),
    "kda value first, by its old name": Option("kda", keywords={"transpose_state_layout": True}, v_first=True),
    "kda what chooses kernels": Option(
        "kda", ("chunk",), {"disable_recompute": True, "use_graph": True, "max_num_seqs": 4, "chunk_size": 32}),
    "gdn2 gate": Option("gdn2", keywords={"use_gate_in_kernel": True}, more=GATE, means=gate),
    "gdn2 bounded gate": Option(
        "gdn2", keywords={"use_gate_in_kernel": True, "lower_bound": -3.0}, more=GATE, means=lambda x: gate(x, -3.0)),
    "gdn2 safe gate": Option(
        "gdn2", ("chunk",), {"use_gate_in_kernel": True, "lower_bound": -5.0, "safe_gate": True}, GATE,
        means=lambda x: gate(x, -5.0)),
    "gdn2 value first": Option("gdn2", keywords={"state_v_first": True}, v_first=True),
    "gdn2 value first, by its old name": Option("gdn2", keywords={"transpose_state_layout": True}, v_first=True),
    "gdn2 normalised": Option("gdn2", keywords={"use_qk_l2norm_in_kernel": True}, truth={"l2norm": True}),
    "gla decays of value channels": Option("gla", ("recurrent",), more={"gv": lambda: -draw(2, 37, 4, 12)().abs()}),
    "gla without decays": Option("gla", ("recurrent",), without=("g",)),
    "gla backwards": Option("gla", ("recurrent",), {"reverse": True}, backwards=True),
    "gla decays of value channels, backwards": Option(
        "gla", ("recurrent",), {"reverse": True}, {"gv": lambda: -draw(2, 37, 4, 12)().abs()}, backwards=True),
    "gla value first": Option("gla", keywords={"state_v_first": True}, v_first=True),
    "gla scale": Option("gla", keywords={"scale": 0.3}, truth={"scale": 0.3}),
    "simple_gla without decay": Option("simple_gla", without=("g",)),
    "simple_gla decays of heads": Option(
        "simple_gla", without=("g",), more={"g_gamma": lambda: -draw(4)().abs()},
        means=lambda x: {**{n: t for n, t in x.items() if n != "g_gamma"}, "g": x["g_gamma"].expand(2, 37, 4)}),
    "simple_gla backwards": Option("simple_gla", ("recurrent",), {"reverse": True}, backwards=True),
    "simple_gla value first": Option("simple_gla", keywords={"state_v_first": True}, v_first=True),
    "simple_gla scale": Option("simple_gla", keywords={"scale": 0.3}, truth={"scale": 0.3}),
}
RUNS = [(name, form) for name, option in OPTIONS.items() for form in option.forms]


def leaves_of(option):
    given = family.inputs(option.member, value_heads=4)
    if "A_log" in option.more or "dt_bias" in option.more:
        given["g"] = draw(2, 37, 4, 8)()
    given.update({name: make() for name, make in option.more.items()})
    return {name: x.requires_grad_() for name, x in given.items() if name not in option.without}


def flipped(option, x):
    return {name: t.flip(1) if t.dim() > 2 else t for name, t in x.items()} if option.backwards else x


@pytest.mark.filterwarnings("ignore:.*transpose_state_layout:DeprecationWarning")
@cases(run=RUNS)
def test_the_option_means_what_it_says_with_every_gradient(run):
    name, form = run
    option = OPTIONS[name]
    leaves = leaves_of(option)
    state = draw(2, 4, 8, 12)().requires_grad_()
    handed = state.transpose(2, 3) if option.v_first else state
    o, final = family.run(option.member, form, leaves, initial_state=handed, **option.keywords)
    final = final.transpose(2, 3) if option.v_first else final
    want, last = family.truth(option.member, flipped(option, option.means(leaves)), state, **option.truth)
    want = want.flip(1) if option.backwards else want
    do, dfinal = draw(*o.shape)(), draw(*final.shape)()
    grads = [torch.autograd.grad((a * do).sum() + (b * dfinal).sum(), [*leaves.values(), state])
             for a, b in ((o, final), (want, last))]
    assert_close(o, want, rms=1e-11, name=name)
    assert_close(final, last, rms=1e-11, name=name)
    for part, got, exact in zip([*leaves, "state"], *grads):
        assert_close(got, exact, rms=1e-10, name=f"{name}: {part}")


@cases(name=["gla backwards", "simple_gla backwards", "gla decays of value channels, backwards"])
def test_packed_sequences_are_walked_backwards_each_by_itself(name):
    option = OPTIONS[name]
    given = {part: x[:1].detach() for part, x in leaves_of(option).items()}
    o, final = family.run(option.member, "recurrent", given, cu_seqlens=CU, **option.keywords)
    for n, (start, stop) in enumerate(zip(CU[:-1].tolist(), CU[1:].tolist())):
        part = {key: x[:, start:stop].flip(1) for key, x in given.items()}
        want, last = family.truth(option.member, part)
        assert_close(o[:, start:stop], want.flip(1), rms=1e-12)
        assert_close(final[n : n + 1], last, rms=1e-12)


NAIVE = {
    "naive_recurrent_kda": ("kda", naive_recurrent_kda, {"scale": 0.3}),
    "naive_chunk_kda": ("kda", naive_chunk_kda, {"scale": 0.3, "chunk_size": 5}),
    "naive_recurrent_comba": ("comba", naive_recurrent_comba, {"scale": 0.3}),
    "naive_chunk_comba": ("comba", naive_chunk_comba, {"scale": 0.3, "chunk_size": 5}),
    "naive_recurrent_gdn2": ("gdn2", naive_recurrent_gdn2, {"scale": 0.3}),
    "naive_chunk_gdn2": ("gdn2", naive_chunk_gdn2, {"scale": 0.3, "chunk_size": 5}),
    "naive_recurrent_simple_gla": ("simple_gla", naive_recurrent_simple_gla, {"scale": 0.3}),
    "naive_chunk_simple_gla": ("simple_gla", naive_chunk_simple_gla, {"scale": 0.3, "chunk_size": 5}),
}


@cases(name=list(NAIVE), tokens=[0, 1, 17])
def test_the_plain_forms_are_the_token_loop(name, tokens):
    member, function, options = NAIVE[name]
    given = family.inputs(member, tokens=tokens)
    state = family.state_for(given)
    o, final = function(**given, **options, initial_state=state, output_final_state=True)
    want, last = family.truth(member, given, state, scale=0.3)
    assert_close(o, want, rms=1e-12)
    assert_close(final, last, rms=1e-12)


def heads_first(given):
    return [given[name].transpose(1, 2) for name in ("q", "k", "v", "beta")]


@cases(tokens=[0, 1, 17], chunk_size=[1, 5, 32])
def test_the_plain_delta_rule_in_every_form_is_the_token_loop(tokens, chunk_size):
    given = family.inputs("delta_rule", tokens=tokens)
    want, last = family.truth("delta_rule", given)
    x = heads_first(given)
    for o, final in (delta_rule_recurrence(*x), delta_rule_chunkwise(*x, chunk_size=chunk_size)):
        assert_close(o.transpose(1, 2), want, rms=1e-12)
        assert_close(final, last, rms=1e-12)
    o, A = delta_rule_parallel(*x)
    assert_close(o.transpose(1, 2), want, rms=1e-12)
    assert_close(A @ (x[3].unsqueeze(-1) * x[2]), o, rms=1e-12)


@cases(decay=[0.0, 1.0], value_heads=[2, 4])
def test_the_weights_make_the_outputs_of_the_values(decay, value_heads):
    given = {name: x.requires_grad_() for name, x in
             family.inputs("simple_gla", decay=decay, value_heads=value_heads).items()}
    want = family.truth("simple_gla", given)[0]
    o, A = parallel_simple_gla(**given, output_attentions=True)
    assert A.shape == (2, value_heads, 37, 37) and not A.detach().triu(1).any()
    from_weights = (A @ given["v"].transpose(1, 2)).transpose(1, 2)
    do = torch.randn_like(o)
    exact = torch.autograd.grad((want * do).sum(), list(given.values()))
    for found in (o, from_weights):
        assert_close(found, want, rms=1e-12)
        for got, right in zip(torch.autograd.grad((found * do).sum(), list(given.values()), retain_graph=True), exact):
            assert_close(got, right, rms=1e-11)
    if value_heads == 2:
        plain, weights = naive_parallel_simple_gla(**given)
        assert_close(plain, want, rms=1e-12)
        assert_close(weights, A, rms=1e-12)
    assert parallel_simple_gla(**given)[1] is None


def test_weights_of_packed_sequences_are_refused():
    given = family.inputs("simple_gla", batch=1)
    with raises(ValueError, "parallel_simple_gla", "output_attentions", "False with cu_seqlens", "each sequence"):
        parallel_simple_gla(**given, output_attentions=True, cu_seqlens=CU)


def test_other_official_names_compute_the_same():
    given = family.inputs("simple_gla", batch=1)
    more = dict(g_gamma=torch.tensor([-0.1, -0.2]), scale=0.3, initial_state=torch.randn(4, 2, 8, 12))
    for got, want in zip(fused_chunk_simple_gla(**given, **more, output_final_state=True, cu_seqlens=CU),
                         chunk_simple_gla(**given, **more, output_final_state=True, cu_seqlens=CU)):
        assert torch.equal(got, want)
    given = family.inputs("delta_rule")
    assert_close(fused_chunk_delta_rule(**given)[0], family.truth("delta_rule", given)[0], rms=1e-12)


@cases(op=[chunk_kda, chunk_gdn2], packed=[False, True], v_first=[False, True], tokens=[0, 37])
def test_the_states_before_every_chunk(op, packed, v_first, tokens):
    member = "kda" if op is chunk_kda else "gdn2"
    given = family.inputs(member, batch=1 if packed else 2, tokens=tokens, value_heads=4)
    bounds = [0, 0, 18, 19, 37] if tokens else [0, 0, 0]
    cu, rows = (torch.tensor(bounds), len(bounds) - 1) if packed else (None, 2)
    first = family.state_for(given, rows)
    handed = first.transpose(2, 3) if v_first else first
    o, final, states = op(**given, initial_state=handed, output_final_state=True, cu_seqlens=cu, chunk_size=16,
                          return_intermediate_states=True, state_v_first=v_first)
    want, last = family.truth(member, given, first, cu_seqlens=cu)
    assert_close(o, want, rms=1e-12)
    final, states = (x.transpose(-1, -2) if v_first else x for x in (final, states))
    assert_close(final, last, rms=1e-12)
    expected = []
    for row, (start, stop) in enumerate(zip(bounds[:-1], bounds[1:]) if packed else [(0, tokens)] * 2):
        for cut in range(start, stop, 16):
            where = slice(0, 1) if packed else slice(row, row + 1)
            part = {name: x[where, start:cut] for name, x in given.items()}
            expected.append(family.truth(member, part, first[row : row + 1])[1])
    batch = 1 if packed else 2
    assert states.shape == (batch, len(expected) // batch, 4, 8, 12)
    if expected:
        assert_close(states.flatten(0, 1), torch.cat(expected), rms=1e-12)
