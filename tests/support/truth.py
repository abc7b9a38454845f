"""The recurrences as float64 token loops, written from the equations and from nothing else.

Slow and plain on purpose: everything fast is held against these. Autograd gives their gradients.
"""

from typing import List, Optional, Tuple

import torch


def _sequences(batch: int, tokens: int, cu_seqlens: Optional[List[int]]) -> List[Tuple[int, int, int]]:
    """(row, first token, last token + 1) of every sequence."""
    if cu_seqlens is None:
        return [(b, 0, tokens) for b in range(batch)]
    return [(0, start, stop) for start, stop in zip(cu_seqlens[:-1], cu_seqlens[1:])]


def gated_delta_rule(
    q, k, v, g, beta, scale=None, initial_state=None, cu_seqlens=None, l2norm=False, A_log=None, dt_bias=None,
    sigmoid=False, neg_eigval=False, **_,
):
    """S <- exp(g) S;  S <- S + k beta (v - S^T k)^T;  o = scale S^T q.  Returns (o, final state [N, HV, K, V])."""
    q, k, v, g, beta = (x.double() for x in (q, k, v, g, beta))
    batch, tokens, heads, key = q.shape
    value_heads, value = v.shape[2:]
    if l2norm:
        q = q / (q.square().sum(-1, keepdim=True) + 1e-6).sqrt()
        k = k / (k.square().sum(-1, keepdim=True) + 1e-6).sqrt()
    if A_log is not None:
        bias = 0 if dt_bias is None else dt_bias.double()
        g = -A_log.double().exp() * torch.nn.functional.softplus(g + bias)
    if sigmoid:
        beta = beta.sigmoid() * (2 if neg_eigval else 1)
    scale = key**-0.5 if scale is None else scale
    q, k = (x.repeat_interleave(value_heads // heads, dim=2) for x in (q * scale, k))
    cu = cu_seqlens if cu_seqlens is None else [int(x) for x in cu_seqlens]
    outputs, finals = [], []
    for n, (row, start, stop) in enumerate(_sequences(batch, tokens, cu)):
        state = v.new_zeros(value_heads, key, value) if initial_state is None else initial_state[n].double()
        for t in range(start, stop):
            kt = k[row, t, :, :, None]
            state = state * g[row, t].exp()[:, None, None]
            error = v[row, t, :, None, :] - (kt * state).sum(1, keepdim=True)
            state = state + kt * (beta[row, t, :, None, None] * error)
            outputs.append((q[row, t, :, :, None] * state).sum(1))
        finals.append(state)
    o = torch.stack(outputs) if outputs else v.new_zeros(0, value_heads, value)
    return o.view(batch, tokens, value_heads, value), torch.stack(finals)


def rwkv7(r, w, k, v, kk, a, scale=1.0, initial_state=None, cu_seqlens=None, **_):
    """S <- diag(exp w) S - (kk a)(kk^T S_old) + k v^T;  o = scale S^T r.  Returns (o, final state [N, H, K, V])."""
    r, w, k, v, kk, a = (x.double() for x in (r, w, k, v, kk, a))
    batch, tokens, heads, key = r.shape
    value = v.shape[-1]
    cu = cu_seqlens if cu_seqlens is None else [int(x) for x in cu_seqlens]
    outputs, finals = [], []
    for n, (row, start, stop) in enumerate(_sequences(batch, tokens, cu)):
        state = v.new_zeros(heads, key, value) if initial_state is None else initial_state[n].double()
        for t in range(start, stop):
            removed = (-kk[row, t, :, :, None] * state).sum(1, keepdim=True)
            state = (
                state * w[row, t].exp()[:, :, None]
                + (kk * a)[row, t, :, :, None] * removed
                + k[row, t, :, :, None] * v[row, t, :, None, :]
            )
            outputs.append((scale * r[row, t, :, :, None] * state).sum(1))
        finals.append(state)
    return torch.stack(outputs).view(batch, tokens, heads, value), torch.stack(finals)
