"""Properties of everything that keeps a state, to be run on layers and on whole encoders (`state_subjects`)."""

from concurrent.futures import ThreadPoolExecutor

import torch
from hypothesis import strategies as st

from myfla.testing import assert_close
from state_subjects import states

TIGHT, RMS = 1e-10, 2e-6  # float64: only the order of sums differs; float32: what is promised
JUNK = (0.0, float("nan"), float("inf"), -3.0)
sizes = st.lists(st.one_of(st.integers(0, 3), st.integers(0, 70)), min_size=1, max_size=5)
few = st.lists(st.integers(0, 6), min_size=1, max_size=4)


def close_states(got, want, rms, rows=slice(None)):
    pairs = list(zip(states(got, rows), states(want)))
    assert len(pairs) == len(states(got)) == len(states(want))
    for a, b in pairs:
        assert_close(a, b, rms=rms)


def grad_of(subject, outputs, leaves):
    """Gradients of a fixed random functional of outputs, zeros where something is not used."""
    draw = torch.Generator().manual_seed(3)
    total = sum((t * torch.randn(t.shape, generator=draw, dtype=t.dtype)).sum() for t in outputs)
    leaves = [*leaves, *subject.parameters]
    if not total.requires_grad:
        return [torch.zeros_like(leaf) for leaf in leaves]
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    return [torch.zeros_like(leaf) if grad is None else grad for grad, leaf in zip(found, leaves)]


def close_grads(got, want, bound=1e-9):
    scale = max([1e-30, *(float(g.abs().max()) for g in want if g.numel())])
    for a, b in zip(got, want):
        assert torch.isfinite(a).all()
        assert not a.numel() or float((a - b).abs().max()) <= bound * scale


def any_split(subject, pieces, grad=False):
    """Any split equals the whole: outputs, states, counted tokens."""
    x = subject.data(2, sum(pieces))
    with torch.set_grad_enabled(grad):
        want, whole = subject(x)
        outputs, cache = [], None
        for part in x.split(pieces, dim=1):
            y, cache = subject(part, cache)
            outputs.append(y)
    rms = TIGHT if subject.dtype == torch.float64 else RMS
    assert_close(torch.cat(outputs, dim=1), want, rms=rms)
    close_states(cache, whole, rms)
    if subject.slot is not None:
        assert subject.lengths(cache) == subject.lengths(whole) == [sum(pieces)] * 2


def next_token(subject, before, following):
    """The next token alone is the first of a longer call from the same cache: its output, and what follows it.

    Args:
        before: tokens that the cache has seen.
        following: tokens of the longer call.
    """
    x = subject.data(2, before + following)
    with torch.no_grad():
        _, cache = subject(x[:, :before])
        longer, whole = subject(x[:, before:], cache)
        alone, after = subject(x[:, before : before + 1], cache)
        rest, last = subject(x[:, before + 1 :], after)
    rms = TIGHT if subject.dtype == torch.float64 else RMS
    assert_close(alone, longer[:, :1], rms=rms)
    assert_close(rest, longer[:, 1:], rms=rms)
    close_states(last, whole, rms)


def padding_on_continued_calls(subject, masks, junk):
    """Calls with pads anywhere equal, row by row, calls with the real tokens alone: outputs, states, gradients.

    Args:
        masks: for each call a bool tensor ``[B, T]``.
        junk: what stands in the pads.
    """
    batch = masks[0].shape[0]
    tokens = [subject.data(batch, mask.shape[1], seed=i).requires_grad_() for i, mask in enumerate(masks)]
    cache, outputs = None, []
    for x, mask in zip(tokens, masks):
        y, cache = subject(torch.where(mask[..., None], x, torch.full_like(x, junk)), cache, mask=mask.long())
        assert not y[~mask].any()
        outputs.append(y)
    kept = states(cache)
    got, want, alone_states = [], [], []
    for row in range(batch):
        alone = None
        for x, mask, y in zip(tokens, masks, outputs):
            lone, alone = subject(x[row, mask[row]][None], alone)
            assert_close(y[row, mask[row]], lone[0], rms=TIGHT)
            got.append(y[row, mask[row]])
            want.append(lone[0])
        close_states(cache, alone, TIGHT, rows=slice(row, row + 1))
        alone_states.append(states(alone))
        if subject.slot is not None:
            assert subject.lengths(cache)[row] == sum(int(mask[row].sum()) for mask in masks)
    if subject.slot is not None:
        assert cache.get_seq_length(subject.slot) == sum(mask.shape[1] for mask in masks)
    joined = [torch.cat(parts) for parts in zip(*alone_states)]
    close_grads(grad_of(subject, [*got, *kept], tokens), grad_of(subject, [*want, *joined], tokens))


def packed_and_padded(subject, rounds):
    """Packed calls equal padded ones and lone ones, call after call: outputs, states, gradients.

    Args:
        rounds: for each call the tokens of each sequence; all of one number of sequences.
    """
    count = len(rounds[0])
    given = [[subject.data(1, n, seed=10 * i + j).requires_grad_() for j, n in enumerate(lengths)]
             for i, lengths in enumerate(rounds)]
    leaves = [x for parts in given for x in parts]
    packed = padded = None
    lone, results = [None] * count, ([], [], [])
    for lengths, parts in zip(rounds, given):
        ends = torch.tensor([0, *lengths]).cumsum(0)
        y, packed = subject(torch.cat(parts, dim=1), packed, cu=ends)
        results[0].extend(y[0, ends[j] : ends[j + 1]] for j in range(count))
        time = max(lengths)
        full = torch.nn.utils.rnn.pad_sequence([x[0] for x in parts], batch_first=True, padding_value=float("nan"))
        mask = torch.arange(time) < torch.tensor(lengths)[:, None]
        y, padded = subject(full, padded, mask=mask.long())
        results[1].extend(y[j, : lengths[j]] for j in range(count))
        for j, x in enumerate(parts):
            y, lone[j] = subject(x, lone[j])
            results[2].append(y[0])
    for got in results[:2]:
        for a, b in zip(got, results[2]):
            assert_close(a, b, rms=TIGHT)
    joined = [torch.cat(parts) for parts in zip(*map(states, lone))]
    want = grad_of(subject, [*results[2], *joined], leaves)
    for got, cache in ((results[0], packed), (results[1], padded)):
        for j in range(count):
            close_states(cache, lone[j], TIGHT, rows=slice(j, j + 1))
        close_grads(grad_of(subject, [*got, *states(cache)], leaves), want)
        if subject.slot is not None:
            assert subject.lengths(cache) == [sum(lengths[j] for lengths in rounds) for j in range(count)]


def sessions_are_isolated(subject, schedule):
    """Sessions that take turns on one module, and sessions in two threads, equal lone ones bit for bit.

    Args:
        schedule: pairs (session, tokens), in the order of the calls.
    """
    count = 1 + max(session for session, _ in schedule)
    streams = [subject.data(1, sum(n for s, n in schedule if s == session), seed=session) for session in range(count)]

    def play(chosen):
        caches, fed, outputs = [None] * count, [0] * count, [[] for _ in range(count)]
        for session, n in schedule:
            if session in chosen:
                x = streams[session][:, fed[session] : fed[session] + n]
                with torch.no_grad():
                    y, caches[session] = subject(x, caches[session])
                fed[session] += n
                outputs[session].append(y)
        return [[*outputs[s], *([] if caches[s] is None else states(caches[s]))] for s in chosen]

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # older PyTorch splits a sum differently in a thread that is not the first
    try:
        alone = [play([session])[0] for session in range(count)]
        taking_turns = play(range(count))
        with ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            threaded = list(pool.map(lambda session: play([session])[0], range(count)))
    finally:
        torch.set_num_threads(threads)
    for together in (taking_turns, threaded):
        for got, want in zip(together, alone):
            assert len(got) == len(want) and all(torch.equal(a, b) for a, b in zip(got, want))


def causality(subject, tokens, at):
    """Another future leaves everything before it as it was."""
    x, other = subject.data(2, tokens), subject.data(2, tokens, seed=1)
    with torch.no_grad():
        before, _ = subject(x)
        after, _ = subject(torch.cat([x[:, :at], other[:, at:]], dim=1))
    assert_close(after[:, :at], before[:, :at], rms=TIGHT if subject.dtype == torch.float64 else 1e-6)
    assert not torch.equal(after[:, at:], before[:, at:])


def permutation(subject, order, pieces):
    """Rows in another order give the results in that order, cached calls included."""
    order = torch.tensor(order)
    first = second = None
    for i, tokens in enumerate(pieces):
        x = subject.data(len(order), tokens, seed=i)
        y, first = subject(x, first)
        turned, second = subject(x[order], second)
        assert_close(turned, y[order], rms=TIGHT if subject.dtype == torch.float64 else RMS)
    close_states(first.reorder(order), second, TIGHT if subject.dtype == torch.float64 else RMS)


def layouts_edited_in_place(subject):
    """A mask and offsets that are edited between calls are obeyed, and are not written."""
    x, mask, cu = subject.data(2, 6), torch.tensor([[1, 1, 0, 1, 1, 1], [0, 1, 1, 1, 0, 1]]), torch.tensor([0, 2, 6])
    for field, layout, edited in (("mask", mask, mask.flip(1)), ("cu", cu, torch.tensor([0, 5, 6]))):
        rows = x if field == "mask" else x[:1]
        first, _ = subject(rows, **{field: layout})
        layout.copy_(edited)
        again, cache = subject(rows, **{field: layout})
        want, fresh = subject(rows, **{field: edited.clone()})
        assert torch.equal(again, want) and not torch.equal(again, first)
        assert all(torch.equal(a, b) for a, b in zip(states(cache), states(fresh))) and torch.equal(layout, edited)
