"""What the DPLR ops promise beside their values: splits, order, containment, memory, messages."""

import warnings

import torch

from dplr_cases import leaves, make, run
from myfla.ops._delta.chunk import plan
from myfla.ops.generalized_delta_rule import chunk_dplr_delta_rule, fused_recurrent_dplr_delta_rule
from myfla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence
from myfla.testing import assert_close, cases, raises

OPS = {"chunk": chunk_dplr_delta_rule, "recurrent": fused_recurrent_dplr_delta_rule}
TOKENS = ("r", "w", "k", "v", "kk", "a")


def pieces(op, given, cuts):
    """The op over ``[0, cuts[0])``, ``[cuts[0], cuts[1])``, ...; the state goes from one to the next."""
    outputs, state, bounds = [], given["initial_state"], [0, *cuts, given["r"].shape[1]]
    for first, last in zip(bounds[:-1], bounds[1:]):
        part = {name: given[name][:, first:last] for name in TOKENS}
        o, state = run(OPS[op], {**part, "initial_state": state})
        outputs.append(o)
    return torch.cat(outputs, dim=1), state


@cases(K=[16, 20, 64], cuts=[[1], [0, 7, 7, 8], list(range(1, 45)), [31, 32, 33]])
def test_any_split_equals_the_whole(K, cuts):
    given = make(T=45, K=K, V=K, dtype=torch.float32)
    whole = run(OPS["recurrent"], given)
    for got, want in zip(pieces("recurrent", given, cuts), whole):
        assert torch.equal(got, want)
    for got, want in zip(pieces("chunk", given, cuts), run(OPS["chunk"], given)):
        assert_close(got, want, rms=2e-6)


@cases(op=list(OPS), K=[5, 16, 33])
def test_permuting_the_batch_permutes_the_result(op, K):
    given = make(B=5, T=40, K=K, V=K, dtype=torch.float32)
    order = torch.tensor([3, 0, 4, 2, 1])
    got = run(OPS[op], {name: x[order] for name, x in given.items()})
    for x, y in zip(got, run(OPS[op], given)):
        assert torch.equal(x, y[order])


@cases(op=list(OPS), at=[1, 20, 39], decay=["layer", "to_40"])
def test_the_future_changes_nothing_before_it(op, at, decay):
    """Also where only the future makes a chunk's decay a strong one."""
    given = make(T=40, dtype=torch.float32)
    before, _ = run(OPS[op], given)
    other = make(T=40, dtype=torch.float32, decay=decay, seed=1)
    for name in TOKENS:
        given[name][:, at:] = other[name][:, at:]
    after, _ = run(OPS[op], given)
    assert torch.equal(before[:, :at], after[:, :at])
    assert not torch.equal(before[:, at:], after[:, at:])


@cases(op=list(OPS), name=list(TOKENS), packed=[False, True])
def test_nan_stays_in_its_row_and_chunk(op, name, packed):
    cu = [0, 20, 40, 60] if packed else None
    given = make(cu=cu, dtype=torch.float32) if packed else make(B=3, T=40, dtype=torch.float32)
    clean_o, clean_state = run(OPS[op], given, cu=cu)
    row, t = (0, 35) if packed else (1, 35)
    given[name][row, t, 0, 3] = float("nan")
    o, state = run(OPS[op], given, cu=cu)
    other = torch.ones(o.shape[:3], dtype=torch.bool)
    first = (20 + 0 if op == "chunk" else t) if packed else (32 if op == "chunk" else t)
    other[row, first : 40, 0] = False
    assert torch.equal(o[other], clean_o[other])
    assert torch.isnan(o[row, t:40, 0]).any()
    rows = [n for n in range(3) if n != 1]
    assert torch.equal(state[rows], clean_state[rows])
    assert torch.equal(state[1, 1], clean_state[1, 1])


@cases(op=list(OPS))
def test_no_argument_is_written(op):
    given = make(T=40, dtype=torch.float32)
    copies = {name: x.clone() for name, x in given.items()}
    _o, state = run(OPS[op], given)
    inputs = leaves(given)
    (run(OPS[op], inputs)[0].sum()).backward()
    for name in given:
        assert torch.equal(given[name], copies[name]) and torch.equal(inputs[name], copies[name])
    assert state.data_ptr() != given["initial_state"].data_ptr()


@cases(op=list(OPS))
def test_inputs_of_any_strides_are_read_right(op):
    given = make(T=40)
    want = run(OPS[op], given)
    odd = {name: x.transpose(-1, -2).contiguous().transpose(-1, -2) for name, x in given.items()}
    odd["v"] = given["v"][:, :1].expand_as(given["v"])
    got = run(OPS[op], {**odd, "v": odd["v"]})
    expected = run(OPS[op], {**given, "v": odd["v"].contiguous()})
    for x, y in zip(got, expected):
        assert_close(x, y, rms=1e-13)
    assert not torch.equal(got[0], want[0])


def test_backward_is_the_hand_written_one():
    """Autograd records one node whose inputs are the arguments, not the operations inside."""
    given = make(T=70, dtype=torch.float32)
    inputs = leaves({name: given[name] for name in TOKENS})
    x = [inputs[name] for name in ("r", "k", "v", "kk", "a", "w")]
    for op in (chunk_dplr_delta_rule, fused_recurrent_dplr_delta_rule):
        o, _ = op(*x, backend="torch")
        node = o.grad_fn
        assert "ChunkRule" in type(node).__name__
        behind = [next_node for next_node, _ in node.next_functions if next_node is not None]
        assert len(behind) == 6 and all("AccumulateGrad" in type(n).__name__ for n in behind)


@cases(keeps=[False, True])
def test_memory_grows_with_the_tokens(keeps, monkeypatch):
    """Short inputs keep what the backward would find again."""

    def kept(tokens):
        sizes = []

        def pack(x):
            sizes.append(x.numel() * x.element_size())
            return x

        inputs = leaves(make(B=1, T=tokens, K=32, V=32, dtype=torch.float32))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            run(chunk_dplr_delta_rule, inputs)
        return sum(sizes)

    monkeypatch.setattr(plan, "saves_recomputable", lambda elements, device: keeps)
    small, large = kept(256), kept(1024)
    assert 3.5 * small < large < 4.1 * small
    one_input = 1024 * 2 * 32 * 4
    assert large < (22 if keeps else 12) * one_input  # seven inputs, the states, what was read and the inverses


@cases(blocks=[1, 3, 1000], decay=["layer", "spikes"], cu=[None, [0, 1, 17, 17, 60, 100]])
def test_factors_kept_for_the_backward_equal_factors_found_again(blocks, decay, cu, monkeypatch):
    given = make(T=100, cu=cu, decay=decay)
    monkeypatch.setattr(plan, "block_chunks", lambda elements, device: blocks)
    found = []
    for keeps in ((True, True), (True, False), (False,)):  # the states, and then the tokens too
        answers = iter(keeps)
        monkeypatch.setattr(plan, "saves_recomputable", lambda elements, device, answers=answers: next(answers))
        inputs = leaves(given)
        outputs = run(chunk_dplr_delta_rule, inputs, cu=cu)
        loss = sum((x * torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view(x.shape)).sum() for x in outputs)
        gradients = [torch.autograd.grad(loss, list(inputs.values()), retain_graph=True) for _ in range(2)]
        for once, twice in zip(*gradients):
            assert torch.equal(once, twice), "a backward pass has changed what was kept"
        found.append((*outputs, *gradients[0]))
    for kept, *others in zip(*found):
        assert all(torch.equal(kept, again) for again in others)


@cases(op=list(OPS))
def test_long_runs_stay_exact(op):
    given = make(B=1, T=1500, H=1, K=16, V=16, dtype=torch.float32)
    o, state = run(OPS[op], given)
    want_o, want_state = run(fused_recurrent_dplr_delta_rule, {name: x.double() for name, x in given.items()})
    assert_close(o, want_o, rms=2e-6)
    assert_close(state, want_state, rms=2e-6)


@cases(op=list(OPS))
def test_autocast_changes_nothing(op):
    given = make(T=40, dtype=torch.float32)
    want = run(OPS[op], given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = run(OPS[op], given)
    for x, y in zip(got, want):
        assert x.dtype == torch.float32
        assert_close(x, y, rms=1e-6)


def test_float32_gives_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(chunk_dplr_delta_rule, make(T=3, dtype=torch.float32))


@cases(op=list(OPS))
def test_scale_defaults_to_one_over_root_k(op):
    given = make(T=9)
    x = [given[name] for name in ("r", "k", "v", "kk", "a", "w")]
    heads_first = [t.transpose(1, 2) for t in x]
    want, _ = dplr_recurrence(*heads_first)
    o, state = OPS[op](*x)
    assert_close(o, want.transpose(1, 2), rms=1e-12)
    assert state is None


@cases(op=list(OPS))
def test_wrong_tensors_are_refused_by_name(op):
    call, given = OPS[op], make(T=9)
    x = dict(zip("qkvab", (given[n] for n in ("r", "k", "v", "kk", "a"))), gk=given["w"])
    who = f"{'chunk' if op == 'chunk' else 'fused_recurrent'}_dplr_delta_rule"
    with raises(ValueError, who, "q must have shape [B, T, H, K]", "(9, 2, 16)"):
        call(**{**x, "q": x["q"][0]})
    with raises(ValueError, who, "q must have shape [B, T, H, K] with H and K from 1", "(2, 9, 0, 16)"):
        call(**{name: t[:, :, :0] for name, t in x.items()})
    with raises(ValueError, who, "v must have shape [B, T, H, V]", "[2, 9, 2]", "(2, 8, 2, 16)"):
        call(**{**x, "v": x["v"][:, 1:]})
    for name in ("k", "a", "b", "gk"):
        with raises(ValueError, who, f"{name} must have the shape of q, (2, 9, 2, 16)", "(2, 9, 2, 15)"):
            call(**{**x, name: x[name][..., 1:]})
    with raises(ValueError, who, "k must be a floating point tensor", "int64"):
        call(**{**x, "k": x["k"].long()})
    with raises(ValueError, who, "a must be a floating point tensor", "'NoneType'"):
        call(**{**x, "a": None})
    with raises(ValueError, who, "gk must be on the device of q, cpu", "'meta'"):
        call(**{**x, "gk": x["gk"].to("meta")})
    with raises(ValueError, who, "initial_state must be a floating point tensor", "int64"):
        call(**x, initial_state=given["initial_state"].long())
    with raises(ValueError, who, "initial_state must have shape [N, H, K, V] = (2, 2, 16, 16)", "(1, 2, 16, 16)"):
        call(**x, initial_state=given["initial_state"][:1])
    with raises(ValueError, who, "cu_seqlens", "batch size 2"):
        call(**x, cu_seqlens=torch.tensor([0, 9]))
    with raises(ValueError, who, "cu_seqlens must end at the number of tokens, 9", "8"):
        call(**{name: t[:1] for name, t in x.items()}, cu_seqlens=torch.tensor([0, 8]))


def test_wrong_options_are_refused_by_name():
    given = make(T=9)
    x = [given[name] for name in ("r", "k", "v", "kk", "a", "w")]
    who = "chunk_dplr_delta_rule"
    with raises(ValueError, who, "chunk_size must be 16, 32 or 64", "got 48"):
        chunk_dplr_delta_rule(*x, chunk_size=48)
    with raises(ValueError, who, "lower_bound must be negative", "got 0.5"):
        chunk_dplr_delta_rule(*x, lower_bound=0.5)
    with raises(ValueError, who, "cp_context must be None", "dict"):
        chunk_dplr_delta_rule(*x, cp_context={})
    with raises(ValueError, who, "head_first is not supported", "[B, T, H, D]"):
        chunk_dplr_delta_rule(*x, head_first=True)
    with raises(TypeError, who, "unknown keyword 'inital_state'", "did you mean 'initial_state'?"):
        chunk_dplr_delta_rule(*x, inital_state=None)
    want = chunk_dplr_delta_rule(*x)[0]
    got = chunk_dplr_delta_rule(
        *x, head_first=False, safe_gate=True, lower_bound=-5.0, disable_recompute=True, cu_seqlens_cpu=None
    )[0]
    assert torch.equal(got, want)
