"""What the state of an op promises, of every member, for splits, packings and pads that nobody chose."""

from concurrent.futures import ThreadPoolExecutor

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from myfla.testing import assert_close, cases
from state_subjects import EVERY, IDENTITY, op_state

quick = settings(max_examples=12, deadline=None, derandomize=True)
pieces = st.lists(st.one_of(st.integers(0, 3), st.integers(0, 40)), min_size=1, max_size=5)
decays = st.sampled_from([0.0, 1.0, 100.0])


def cut(inputs, start, stop):
    return {name: t[:, start:stop] for name, t in inputs.items()}


def same(got, want, exact, rms=2e-6):
    for a, b in zip(got, want):
        if exact:
            assert torch.equal(a, b)
        else:
            assert_close(a, b, rms=rms)


def stream(op, inputs, sizes, state):
    """The op over consecutive pieces, the state going from one to the next."""
    outputs, start = [], 0
    for size in sizes:
        o, state = op(cut(inputs, start, start + size), state)
        outputs.append(o)
        start += size
    return torch.cat(outputs, dim=1), state


@cases(name=list(EVERY))
@quick
@given(sizes=pieces, decay=decays)
def test_any_split_equals_the_whole(name, sizes, decay):
    op = EVERY[name]
    inputs, state = op.inputs(2, sum(sizes), decay=decay), op_state(name, 2)
    same(stream(op, inputs, sizes, state), op(inputs, state), op.exact)


@cases(name=list(EVERY), before=[0, 1, 70], following=[1, 3, 66])
def test_the_next_token_alone_is_the_first_of_a_longer_call(name, before, following):
    op = EVERY[name]
    inputs = op.inputs(2, before + following)
    _, state = op(cut(inputs, 0, before), op_state(name, 2))
    longer, _ = op(cut(inputs, before, before + following), state)
    alone, _ = op(cut(inputs, before, before + 1), state)
    same([alone], [longer[:, :1]], op.exact)


@cases(name=list(EVERY))
@quick
@given(sizes=pieces, decay=decays, piecewise=st.booleans())
def test_packed_equals_one_by_one_with_states_and_gradients(name, sizes, decay, piecewise):
    op, rows = EVERY[name], len(sizes)
    cu = torch.tensor([0, *sizes]).cumsum(0)
    inputs = {key: t.requires_grad_() for key, t in op.inputs(1, sum(sizes), torch.float64, decay=decay).items()}
    state = op_state(name, rows, torch.float64).requires_grad_()
    packed = op(inputs, state, cu)
    alone = []
    for n in range(rows):
        mine = cut(inputs, cu[n], cu[n + 1])
        own = [sizes[n] // 2, sizes[n] - sizes[n] // 2] if piecewise else [sizes[n]]
        alone.append(stream(op, mine, own, state[n : n + 1]))
    want = [torch.cat([o for o, _ in alone], dim=1), torch.cat([s for _, s in alone])]
    same(packed, want, exact=False, rms=1e-11)
    leaves, found = [*inputs.values(), state], []
    for result in (packed, want):
        draw = torch.Generator().manual_seed(3)
        total = sum((t * torch.randn(t.shape, generator=draw, dtype=t.dtype)).sum() for t in result)
        grads = torch.autograd.grad(total, leaves, allow_unused=True)  # without tokens, only the state is used
        found.append([torch.zeros_like(leaf) if grad is None else grad for grad, leaf in zip(grads, leaves)])
    scale = max(float(grad.abs().max()) for grad in found[1] if grad.numel())
    for a, b in zip(*found):
        assert torch.isfinite(a).all() and (not a.numel() or float((a - b).abs().max()) <= 1e-10 * scale)


@cases(name=list(EVERY))
@quick
@given(data=st.data())
def test_pads_as_identity_updates_are_invisible(name, data):
    op, family = EVERY[name], name.rpartition("_")[0]
    batch, tokens = data.draw(st.integers(1, 3)), data.draw(st.integers(0, 24))
    bits = data.draw(st.lists(st.booleans(), min_size=batch * tokens, max_size=batch * tokens))
    keep = torch.tensor(bits, dtype=torch.bool).view(batch, tokens)
    inputs, state = op.inputs(batch, tokens), op_state(name, batch)
    padded = {key: torch.where(keep.view(*keep.shape, *[1] * (t.dim() - 2)), t, torch.tensor(IDENTITY[family][key]))
              for key, t in inputs.items()}
    o, final = op(padded, state)
    for row in range(batch):
        want = op({key: t[row : row + 1, keep[row]] for key, t in inputs.items()}, state[row : row + 1])
        same((o[row : row + 1, keep[row]], final[row : row + 1]), want, op.exact)


@cases(name=list(EVERY), garbage=[0.0, float("nan"), float("inf")])
@quick
@given(data=st.data())
def test_gradients_pass_pads_as_if_they_were_not_there(name, garbage, data):
    op, family = EVERY[name], name.rpartition("_")[0]
    bits = data.draw(st.lists(st.booleans(), min_size=24, max_size=24))
    keep = torch.tensor(bits, dtype=torch.bool).view(2, 12)
    found = []
    for padded in (True, False):
        torch.manual_seed(0)
        inputs = {key: t.requires_grad_() for key, t in op.inputs(2, 12, torch.float64).items()}
        state = op_state(name, 2, torch.float64).requires_grad_()
        draws = torch.randn(2, 12, *op(inputs)[0].shape[2:], dtype=torch.float64), torch.randn_like(state)
        total = 0.0
        if padded:
            masks = {key: keep.view(2, 12, *[1] * (t.dim() - 2)) for key, t in inputs.items()}
            spoilt = {key: torch.where(masks[key], t, torch.full_like(t, garbage)) for key, t in inputs.items()}
            identity = {key: torch.where(masks[key], t, torch.tensor(IDENTITY[family][key], dtype=t.dtype))
                        for key, t in spoilt.items()}
            o, final = op(identity, state)
            total = (o * draws[0])[keep].sum() + (final * draws[1]).sum()
        else:
            for row in range(2):
                mine = {key: t[row : row + 1, keep[row]] for key, t in inputs.items()}
                o, final = op(mine, state[row : row + 1])
                total = total + (o[0] * draws[0][row, keep[row]]).sum() + (final[0] * draws[1][row]).sum()
        leaves = [*inputs.values(), state]
        grads = torch.autograd.grad(total, leaves, allow_unused=True)
        found.append([torch.zeros_like(leaf) if grad is None else grad for grad, leaf in zip(grads, leaves)])
    for got, want in zip(*found):
        assert torch.isfinite(got).all()
        assert float((got - want).abs().max()) <= 1e-10 * max(1.0, float(want.abs().max()))


@cases(name=list(EVERY), packed=[False, True])
def test_sessions_in_threads_equal_sessions_alone(name, packed):
    op = EVERY[name]
    cu = torch.tensor([0, 11, 11, 40]) if packed else None
    streams = [(op.inputs(1 if packed else 3, 40, seed=seed), op_state(name, 3, seed=seed)) for seed in range(4)]

    def run(which):
        inputs, state = streams[which]
        outputs = []
        for _ in range(3):
            o, state = op(inputs, state, cu)
            outputs.append(o)
        return [*outputs, state]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = [run(i) for i in range(4)]
        with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            together = list(pool.map(run, range(4)))
    finally:
        torch.set_num_threads(threads)
    for got, want in zip(together, alone):
        same(got, want, exact=True)


@cases(name=list(EVERY))
@quick
@given(tokens=st.integers(1, 80), data=st.data())
def test_the_future_changes_nothing_before_it(name, tokens, data):
    op, at = EVERY[name], data.draw(st.integers(0, tokens - 1))
    inputs, other, state = op.inputs(2, tokens), op.inputs(2, tokens, seed=1), op_state(name, 2)
    mixed = {key: torch.cat([t[:, :at], other[key][:, at:]], dim=1) for key, t in inputs.items()}
    before, after = op(inputs, state)[0], op(mixed, state)[0]
    assert torch.equal(before[:, :at], after[:, :at]) and not torch.equal(before[:, at:], after[:, at:])


@cases(name=list(EVERY))
@quick
@given(order=st.permutations(range(5)), tokens=st.integers(0, 70))
def test_permuting_the_batch_permutes_the_result(name, order, tokens):
    op, order = EVERY[name], torch.tensor(order)
    inputs, state = op.inputs(5, tokens), op_state(name, 5)
    turned = op({key: t[order] for key, t in inputs.items()}, state[order])
    # A matrix product may round by where its rows lie in memory, so the chunk form is not equal bit for bit.
    same(turned, [t[order] for t in op(inputs, state)], op.exact)


@cases(name=list(EVERY), tokens=[1, 5, 70])
def test_a_row_is_the_same_alone_and_in_a_batch(name, tokens):
    op = EVERY[name]
    inputs, state = op.inputs(5, tokens), op_state(name, 5)
    whole = op(inputs, state)
    for rows in ([3], [1, 4], [0, 1, 2]):
        same(op({key: t[rows] for key, t in inputs.items()}, state[rows]), [t[rows] for t in whole], exact=False)


@cases(name=list(EVERY))
def test_offsets_edited_in_place_are_obeyed(name):
    op, cu = EVERY[name], torch.tensor([0, 9, 30])
    inputs, state = op.inputs(1, 30), op_state(name, 2)
    first = op(inputs, state, cu)
    cu[1] = 17
    again = op(inputs, state, cu)
    same(again, op(inputs, state, torch.tensor([0, 17, 30])), exact=True)
    assert not torch.equal(again[0], first[0])
