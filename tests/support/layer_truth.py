"""The whole GatedDeltaNet and Mamba-2 layers as float64 loops over tokens, written from their equations.

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


def mamba2(layer, parameters, x, state=None, history=None):
    """One sequence through `myfla.layers.Mamba2`.

    Args:
        layer, parameters, x: as `gated_deltanet`.
        state: `[heads, K, V]` to go on from.
        history: the inputs of the convolution before x, `[channels, W]`, newest last.

    Returns:
        y `[T, D]`, the final state, the final history.
    """
    acts = {"silu": lambda u: u * torch.sigmoid(u), "relu": lambda u: u.clamp(min=0),
            "gelu": lambda u: 0.5 * u * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (u + 0.044715 * u**3)))}
    act, x = acts[layer.activation], x.double()
    heads, value, groups, key = layer.num_heads, layer.head_dim, layer.n_groups, layer.ssm_state_size
    inner = heads * value
    state = x.new_zeros(heads, key, value) if state is None else state.double()
    taps = parameters["conv1d.weight"][:, 0]
    past = torch.zeros_like(taps) if history is None else history.double()
    outputs = []
    for token in x:
        zxbcdt = parameters["in_proj.weight"] @ token + parameters.get("in_proj.bias", 0.0)
        z, mixed, dt = zxbcdt[:inner], zxbcdt[inner:-heads], zxbcdt[-heads:]
        past = torch.cat([past[:, 1:], mixed[:, None]], 1)
        mixed = act((past * taps).sum(1) + parameters.get("conv1d.bias", 0.0))
        u = mixed[:inner].view(heads, value)
        B, C = (part.view(groups, key).repeat_interleave(heads // groups, 0) for part in mixed[inner:].chunk(2))
        dt = torch.log1p((dt + parameters["dt_bias"]).exp()).clamp(*layer.dt_limit)
        decay = (-dt * parameters["A_log"].exp()).exp()
        state = decay[:, None, None] * state + B[:, :, None] * (dt[:, None] * u)[:, None, :]
        D = parameters["D"].view(heads, -1)
        o = (torch.einsum("hkv,hk->hv", state, C) + D * u).reshape(-1)
        if layer.rmsnorm:
            gate = z * torch.sigmoid(z)
            o = (o if layer.norm_before_gate else o * gate).view(groups, -1)
            o = (o / ((o * o).mean(1, keepdim=True) + layer.norm_eps).sqrt()).reshape(-1) * parameters["norm.weight"]
            o = o * gate if layer.norm_before_gate else o
        else:
            o = o * act(z)
        outputs.append(parameters["out_proj.weight"] @ o + parameters.get("out_proj.bias", 0.0))
    return torch.stack(outputs) if outputs else x, state, past
