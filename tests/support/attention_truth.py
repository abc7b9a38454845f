"""Softmax attention with rotary positions, one token and one head at a time: the specification."""

import math

import torch


def rotated(vector, position, theta):
    """One head's vector ``[D]`` at a position."""
    half = len(vector) // 2
    out = [None] * len(vector)
    for i in range(half):
        angle = position * theta ** (-2 * i / len(vector))
        a, b = vector[i], vector[i + half]
        out[i], out[i + half] = a * math.cos(angle) - b * math.sin(angle), b * math.cos(angle) + a * math.sin(angle)
    return torch.stack(out)


def attention_truth(layer, x):
    """What an `Attention` layer in float64 gives for one sequence ``[T, hidden_size]``."""
    size, outputs = layer.head_dim, []

    def head(row, i, norm=None):
        part = row[i * size : (i + 1) * size]
        return part if norm is None else part / (part.square().mean() + norm.eps).sqrt() * norm.weight

    q, k, v = layer.q_proj(x), layer.k_proj(x), layer.v_proj(x)
    norms = (layer.q_norm, layer.k_norm) if layer.qk_norm else (None, None)
    for t in range(len(x)):
        first = 0 if layer.window_size is None else max(0, t - layer.window_size + 1)
        heads = []
        for h in range(layer.num_heads):
            own = h // layer.num_kv_groups
            query = rotated(head(q[t], h, norms[0]), t, layer.rope_theta)
            scores = torch.stack([query @ rotated(head(k[s], own, norms[1]), s, layer.rope_theta) / math.sqrt(size)
                                  for s in range(first, t + 1)])
            weights = scores.exp() / scores.exp().sum()
            heads.append(sum(w * head(v[s], own) for w, s in zip(weights, range(first, t + 1))))
        outputs.append(torch.cat(heads))
    return layer.o_proj(torch.stack(outputs))
