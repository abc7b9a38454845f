"""The equations that `.doc/10_modules` derives, written out as they stand there, against the token loops.

Nothing of the library runs here: what is tested is the explanation, forward and backward.
"""

import torch

import truth
from myfla.testing import assert_close, cases


def sequence(tokens, **sizes):
    draw = torch.Generator().manual_seed(tokens)
    return {name: torch.randn(tokens, size, generator=draw, dtype=torch.float64) for name, size in sizes.items()}


def leaves(given):
    return {name: t.clone().requires_grad_() for name, t in given.items()}


def one_head(given):
    """``[1, T, 1, D]``, or ``[1, T, 1]`` for what has no channels."""
    return {name: t[None] if name in ("g", "beta") else t[None, :, None] for name, t in given.items()}


def chunks_of(tokens, size):
    return [slice(start, min(start + size, tokens)) for start in range(0, tokens, size)]


def gated_delta_chunk(q, k, v, g, beta, S, scale):
    """The chunk form of `gated_deltanet.md`: outputs, the state after it, and what its backward names."""
    c = g.cumsum(0)
    W, D = beta * k, (c - c.T).exp().tril()
    L = (D * (k @ W.T)).tril(-1)
    T = torch.linalg.inv(torch.eye(len(c), dtype=c.dtype) + L)
    E = T @ (v - c.exp() * k @ S)
    o = scale * (c.exp() * q) @ S + scale * (D * (q @ W.T)) @ E
    after = c[-1].exp() * S + (beta * (c[-1] - c).exp() * k).T @ E
    return o, after, (c, W, D, T, E)


def gated_delta_chunk_backward(q, k, beta, S, scale, kept, dO, dS_after):
    c, W, D, T, E = kept
    dV = T.T @ (scale * (D * (q @ W.T)).T @ dO + (beta * (c[-1] - c).exp() * k) @ dS_after)
    dS = c[-1].exp() * dS_after + (scale * c.exp() * q).T @ dO - (c.exp() * k).T @ dV
    X, Y = scale * D * (dO @ E.T), (-D * (dV @ E.T)).tril(-1)
    dW = (c[-1] - c).exp() * (E @ dS_after.T) + X.T @ q + Y.T @ k
    dQ = scale * c.exp() * (dO @ S.T) + X @ W
    dK = -c.exp() * (dV @ S.T) + Y @ W + beta * dW
    handed = ((c[-1] - c).exp() * W * (E @ dS_after.T)).sum(1)
    read = (scale * c.exp() * (q @ S) * dO - c.exp() * (k @ S) * dV).sum(1)
    pairs = (X * (q @ W.T)).tril(-1) + Y * (k @ W.T)  # without the diagonal
    dc = read - handed + pairs.sum(1) - pairs.sum(0)
    dc[-1] += handed.sum() + c[-1].exp()[0] * (S * dS_after).sum()
    dg = dc.flip(0).cumsum(0).flip(0)
    return dict(q=dQ, k=dK, v=dV, g=dg[:, None], beta=(k * dW).sum(1, keepdim=True)), dS


@cases(tokens=[1, 5, 12], size=[4, 5, 16])
def test_gated_delta_rule_in_chunks_as_explained(tokens, size):
    given = sequence(tokens, q=4, k=4, v=3, g=1, beta=1)
    given.update(g=-given["g"].abs(), beta=2 * given["beta"].sigmoid())
    start = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    parts, state, outputs, memory = chunks_of(tokens, size), start, [], []
    for part in parts:
        own = {name: t[part] for name, t in given.items()}
        o, after, kept = gated_delta_chunk(**own, S=state, scale=0.5)
        memory.append((own, state, kept))
        outputs, state = [*outputs, o], after
    wanted = {**leaves(given), "start": start.clone().requires_grad_()}
    rest = {name: t for name, t in wanted.items() if name != "start"}
    want, final = truth.gated_delta_rule(**one_head(rest), scale=0.5, initial_state=wanted["start"][None, None])
    got = torch.cat(outputs)
    assert_close(got, want[0, :, 0], rms=1e-12)
    assert_close(state, final[0, 0], rms=1e-12)
    dO, dS = torch.randn_like(got), torch.randn_like(state)
    truths = torch.autograd.grad((want[0, :, 0] * dO).sum() + (final[0, 0] * dS).sum(), list(wanted.values()))
    found = []
    for part, (own, before, kept) in reversed(list(zip(parts, memory))):
        grads, dS = gated_delta_chunk_backward(own["q"], own["k"], own["beta"], before, 0.5, kept, dO[part], dS)
        found.insert(0, grads)
    for name, true in zip(wanted, truths):
        mine = dS if name == "start" else torch.cat([grads[name] for grads in found])
        assert_close(mine, true, rms=1e-11, name=f"d{name}")


def rwkv7_chunk(q, w, k, v, a, b, S):
    """The chunk form of `rwkv7.md`."""
    c = w.cumsum(0)
    a_, q_, b_, k_ = a * (c - w).exp(), q * c.exp(), b * (-c).exp(), k * (-c).exp()
    A = dict(ab=(a_ @ b_.T).tril(-1), ak=(a_ @ k_.T).tril(-1), qb=(q_ @ b_.T).tril(), qk=(q_ @ k_.T).tril())
    T = torch.linalg.inv(torch.eye(len(c), dtype=c.dtype) - A["ab"])
    u = T @ (A["ak"] @ v + a_ @ S)
    o = q_ @ S + A["qk"] @ v + A["qb"] @ u
    after = c[-1].exp()[:, None] * (S + k_.T @ v + b_.T @ u)
    return o, after, (c, (a_, q_, b_, k_), A, T, u)


def rwkv7_chunk_backward(w, v, S, after, kept, do, dS_after):
    c, (a_, q_, b_, k_), A, T, u = kept
    end = c[-1].exp()
    g = T.T @ (A["qb"].T @ do + end * b_ @ dS_after)
    dS = end[:, None] * dS_after + a_.T @ g + q_.T @ do
    dv = A["ak"].T @ g + A["qk"].T @ do + end * k_ @ dS_after
    dab, dak, dqb, dqk = (g @ u.T).tril(-1), (g @ v.T).tril(-1), (do @ u.T).tril(), (do @ v.T).tril()
    da = dab @ b_ + dak @ k_ + g @ S.T
    dq = dqb @ b_ + dqk @ k_ + do @ S.T
    db = dab.T @ a_ + dqb.T @ q_ + end * (u @ dS_after.T)
    dk = dak.T @ a_ + dqk.T @ q_ + end * (v @ dS_after.T)
    per_step = q_ * dq - b_ * db - k_ * dk
    per_step[:-1] += (a_ * da)[1:]  # a is read before its own token's decay
    dw = per_step.flip(0).cumsum(0).flip(0) + (after * dS_after).sum(1)
    grads = dict(q=dq * c.exp(), k=dk * (-c).exp(), v=dv, a=da * (c - w).exp(), b=db * (-c).exp(), w=dw)
    return grads, dS


@cases(tokens=[1, 5, 12], size=[4, 5, 16])
def test_rwkv7_in_chunks_as_explained(tokens, size):
    given = sequence(tokens, q=4, w=4, k=4, v=3, kk=4, gate=4)
    kk = torch.nn.functional.normalize(given.pop("kk"), dim=-1)
    gate = given.pop("gate").sigmoid()
    given["w"] = -0.6 * given["w"].sigmoid()
    start = torch.randn(4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    own = {**given, "a": -kk, "b": kk * gate}
    parts, state, outputs, memory = chunks_of(tokens, size), start, [], []
    for part in parts:
        o, after, kept = rwkv7_chunk(**{name: t[part] for name, t in own.items()}, S=state)
        memory.append((state, after, kept))
        outputs, state = [*outputs, o], after
    wanted = leaves({**given, "kk": kk, "gate": gate, "start": start})
    loop = {"r": wanted["q"], "a": wanted["gate"], **{name: wanted[name] for name in ("w", "k", "v", "kk")}}
    want, final = truth.rwkv7(**one_head(loop), initial_state=wanted["start"][None, None])
    got = torch.cat(outputs)
    assert_close(got, want[0, :, 0], rms=1e-12)
    assert_close(state, final[0, 0], rms=1e-12)
    do, dS = torch.randn_like(got), torch.randn_like(state)
    truths = torch.autograd.grad((want[0, :, 0] * do).sum() + (final[0, 0] * dS).sum(), list(wanted.values()))
    found = []
    for part, (before, after, kept) in reversed(list(zip(parts, memory))):
        grads, dS = rwkv7_chunk_backward(own["w"][part], own["v"][part], before, after, kept, do[part], dS)
        found.insert(0, grads)
    joined = {name: torch.cat([grads[name] for grads in found]) for name in own}
    joined.update(kk=joined["b"] * gate - joined.pop("a"), gate=joined.pop("b") * kk, start=dS)
    for name, true in zip(wanted, truths):
        assert_close(joined[name], true, rms=1e-11, name=f"d{name}")
