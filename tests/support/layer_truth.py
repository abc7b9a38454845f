"""The whole GatedDeltaNet layer as a float64 loop over tokens, written from its equations.

It shares nothing with the library: parameters come in as a dict under their official names, sequences one at a time.
"""

import torch


def parameters_of(layer):
    """float64 copies of a layer's parameters that collect gradients."""
    return {name: p.detach().double().clone().requires_grad_() for name, p in layer.named_parameters()}


def gated_deltanet(layer, parameters, x, state=None, history=None):
    """One sequence through the layer.

    Args:
        layer: read for its settings only.
        parameters: see `parameters_of`.
        x: `[T, D]`.
        state: `[HV, K, V]` to go on from.
        history: for q, k, v the inputs of the convolution before x, `[channels, W]`, newest last.

    Returns:
        y `[T, D]`, the final state, the final histories.
    """
    x = x.double()
    heads, value_heads, key, value = layer.num_heads, layer.num_v_heads, layer.head_k_dim, layer.head_v_dim
    state = x.new_zeros(value_heads, key, value) if state is None else state.double()
    history = [None] * 3 if history is None else list(history)
    mixed = []
    for i, name in enumerate("qkv"):
        projected = x @ parameters[f"{name}_proj.weight"].t()
        if layer.use_short_conv:
            weight = parameters[f"{name}_conv1d.weight"][:, 0]
            bias = parameters.get(f"{name}_conv1d.bias", 0.0)
            past = history[i].double() if history[i] is not None else torch.zeros_like(weight)
            rows = []
            for token in projected:
                past = torch.cat([past[:, 1:], token[:, None]], dim=1)
                rows.append((past * weight).sum(1) + bias)
            projected = torch.stack(rows) if rows else projected
            history[i] = past
        mixed.append(projected * torch.sigmoid(projected))
    q, k, v = mixed
    outputs = []
    for t in range(len(x)):
        a = x[t] @ parameters["a_proj.weight"].t() + parameters["dt_bias"]
        g = -parameters["A_log"].exp() * torch.log1p(a.exp())
        beta = torch.sigmoid(x[t] @ parameters["b_proj.weight"].t()) * (2 if layer.allow_neg_eigval else 1)
        unit = []
        for part in (q[t], k[t]):
            part = part.view(heads, key)
            part = part / ((part * part).sum(1, keepdim=True) + 1e-6).sqrt()
            unit.append(part.repeat_interleave(value_heads // heads, dim=0))
        qt, kt = unit
        state = g.exp()[:, None, None] * state
        error = v[t].view(value_heads, value) - torch.einsum("hkv,hk->hv", state, kt)
        state = state + torch.einsum("hk,hv->hkv", kt, beta[:, None] * error)
        o = torch.einsum("hkv,hk->hv", state, qt) / key**0.5
        o = o / ((o * o).mean(1, keepdim=True) + layer.norm_eps).sqrt() * parameters["o_norm.weight"]
        if layer.use_gate:
            gate = (x[t] @ parameters["g_proj.weight"].t()).view(value_heads, value)
            o = o * torch.sigmoid(gate) * (1 if layer.output_gate_activation == "sigmoid" else gate)
        outputs.append(o.reshape(-1) @ parameters["o_proj.weight"].t())
    return torch.stack(outputs) if outputs else x[:, : layer.hidden_size], state, history


def batch(layer, parameters, x):
    """All rows of `[B, T, D]`."""
    return torch.stack([gated_deltanet(layer, parameters, row)[0] for row in x])
