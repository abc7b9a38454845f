"""RWKV-7's time mixing as a plain NumPy loop, from the equations of the paper (arXiv 2503.14456, section 4).

A second witness: it shares nothing with the library, not even the orientation. As in the paper vectors are rows and
the state is ``[H, V, K]``. Parameters come in as a dict of arrays under their official names.
"""

import numpy as np


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def _low_rank(p, name, x, activation):
    """``f(x A) B + bias``."""
    hidden = activation(x @ p[f"{name}.lora.0.weight"].T)
    return hidden @ p[f"{name}.lora.2.weight"].T + p.get(f"{name}.lora.2.bias", 0.0)


def time_mixing(p, x, heads, norm_eps, v_first=None, state=None, last=None, key_eps=None):
    """One sequence through the layer.

    Args:
        p: parameters by name.
        x: `[T, D]`.
        heads: H.
        norm_eps: what the norm over one head adds to the variance.
        v_first: `[T, V]` values of the first layer, or None in it.
        state: `[H, V, K]` to go on from.
        last: `[D]`, the token before x.
        key_eps: added to the squared length of kk, or None to divide by the length itself.

    Returns:
        y `[T, D]`, the values before they met those of the first layer, the final state, the last token.
    """
    x = np.asarray(x, dtype=np.float64)
    key, value = p["k_proj.weight"].shape[0] // heads, p["v_proj.weight"].shape[0] // heads
    wkv = np.zeros((heads, value, key)) if state is None else np.array(state, dtype=np.float64)
    previous = np.zeros(x.shape[1]) if last is None else last
    outputs, values = [], []
    for t, token in enumerate(x):
        xr, xw, xk, xv, xa, xg = (token + (previous - token) * p[f"x_{i}"].reshape(-1) for i in "rwkvag")
        receptance = xr @ p["r_proj.weight"].T
        decay = np.exp(-np.exp(-0.5) * _sigmoid(_low_rank(p, "w_lora", xw, np.tanh)))
        k = xk @ p["k_proj.weight"].T
        v = own = xv @ p["v_proj.weight"].T
        if v_first is not None:
            v = own + (v_first[t] - own) * _sigmoid(_low_rank(p, "v_lora", xv, lambda z: z))
        rate = _sigmoid(_low_rank(p, "a_lora", xa, lambda z: z))
        gate = _low_rank(p, "g_lora", xg, _sigmoid)
        removed = (k * p["k_k"]).reshape(heads, key)
        written = (k * (1 + (rate - 1) * p["k_a"])).reshape(heads, key)
        r, w, a = (z.reshape(heads, key) for z in (receptance, decay, rate))
        v = v.reshape(heads, value)
        mixed = np.empty((heads, value))
        for h in range(heads):
            length = np.sqrt((removed[h] ** 2).sum() + (key_eps or 0.0))
            unit = removed[h] / (length if key_eps else max(length, 1e-12))
            wkv[h] = wkv[h] @ (np.diag(w[h]) - np.outer(unit, a[h] * unit)) + np.outer(v[h], written[h])
            mixed[h] = wkv[h] @ r[h]
        mixed = (mixed - mixed.mean(1, keepdims=True)) / np.sqrt(mixed.var(1, keepdims=True) + norm_eps)
        normed = mixed.reshape(-1)
        if "g_norm.weight" in p:
            normed = normed * p["g_norm.weight"] + p["g_norm.bias"]
        bonus = ((r * written * p["r_k"]).sum(1, keepdims=True) * v).reshape(-1)
        outputs.append(((normed + bonus) * gate) @ p["o_proj.weight"].T)
        values.append(own)
        previous = token
    size = p["o_proj.weight"].shape[0]
    return np.array(outputs).reshape(len(x), size), np.array(values).reshape(len(x), -1), wkv, previous
