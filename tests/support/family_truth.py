"""The layers of the delta rule's family as float64 equations, written from the papers; the rule itself is
`family.truth`, a loop over tokens. Parameters come in under their official names, `layer_truth.parameters_of`."""

import torch

import family


def silu(x):
    return x * torch.sigmoid(x)


ACTS = {None: lambda x: x, "identity": lambda x: x, "silu": silu, "relu": lambda x: x.clamp(min=0),
        "sigmoid": torch.sigmoid, "swish": silu, "elu": lambda x: torch.where(x > 0, x + 1, x.exp())}


def linear(parameters, name, x):
    """A map, or two behind each other."""
    names = [f"{name}.{i}" for i in (0, 1)] if f"{name}.0.weight" in parameters else [name]
    for one in names:
        x = x @ parameters[f"{one}.weight"].t() + parameters.get(f"{one}.bias", 0.0)
    return x


def convolved(layer, parameters, x, name, act, act_without):
    """A projection behind its causal convolution, ``[B, T, channels]``."""
    y = linear(parameters, f"{name}_proj", x)
    if not layer.use_short_conv:
        return ACTS[act_without](y)
    taps = parameters[f"{name}_conv1d.weight"][:, 0]
    width, out = taps.shape[1], parameters.get(f"{name}_conv1d.bias", torch.zeros(1).double()).expand(y.shape)
    for back in range(width):
        past = torch.cat([torch.zeros_like(y[:, :back]), y[:, : y.shape[1] - back]], 1)[:, : y.shape[1]]
        out = out + past * taps[:, width - 1 - back]
    return ACTS[act](out)


def softplus(x):
    return torch.log1p(x.exp())


def scalar_decay(layer, p, x):
    return -p["A_log"].exp() * softplus(linear(p, "a_proj", x) + p["dt_bias"])


def channel_decay(layer, p, x, heads):
    raw = linear(p, "f_proj", x) + p["dt_bias"]
    raw, slope = raw.view(*x.shape[:2], heads, -1), p["A_log"].exp().unsqueeze(-1)
    bound = getattr(layer, "lower_bound", None)
    return -slope * softplus(raw) if bound is None else bound * torch.sigmoid(slope * raw)


def delta_net(layer, p, x, q, k, v):
    act = ACTS[layer.qk_activation] if layer.qk_activation in ("relu", "elu") else ACTS[None]
    q, k = act(q), act(k)
    if layer.qk_norm == "sum":
        q, k = (t / t.abs().sum(-1, keepdim=True).clamp(min=1e-6) for t in (q, k))
    beta = torch.sigmoid(linear(p, "b_proj", x)) if layer.use_beta else torch.ones_like(v[..., 0])
    factor = 2 if layer.allow_neg_eigval else 1
    return family.truth("delta_rule", {"q": q, "k": k, "v": v, "beta": factor * beta}, l2norm=layer.qk_norm == "l2")[0]


def gated_deltaproduct(layer, p, x, q, k, v):
    n, (batch, time) = layer.num_householder, x.shape[:2]
    k = k.reshape(batch, time * n, layer.num_heads, layer.head_k_dim)
    v = v.reshape(batch, time * n, layer.num_v_heads, layer.head_v_dim)
    beta = torch.sigmoid(linear(p, "b_proj", x)).reshape(batch, time * n, layer.num_v_heads)
    g = scalar_decay(layer, p, x) if layer.use_forget_gate else x.new_zeros(batch, time, layer.num_v_heads)
    factor = 2 if layer.allow_neg_eigval else 1
    given = {"q": q, "k": k, "v": v, "g": g, "beta": factor * beta}
    return family.truth("gated_delta_product", given, l2norm=True, steps=n)[0]


def gdn2(layer, p, x, q, k, v):
    group = layer.num_v_heads // layer.num_heads
    g, erase = channel_decay(layer, p, x, layer.num_heads), torch.sigmoid(linear(p, "b_proj", x)).view(k.shape)
    erase = erase * (2 if layer.allow_neg_eigval else 1)
    q, k, g, erase = (t.repeat_interleave(group, 2) for t in (q, k, g, erase))
    given = {"q": q, "k": k, "v": v, "g": g, "b": erase, "w": torch.sigmoid(linear(p, "w_proj", x)).view(v.shape)}
    return family.truth("gdn2", given, l2norm=True)[0]


def kda(layer, p, x, q, k, v):
    beta = torch.sigmoid(linear(p, "b_proj", x)) * (2 if layer.allow_neg_eigval else 1)
    g = channel_decay(layer, p, x, layer.num_v_heads)
    return family.truth("kda", {"q": q, "k": k, "v": v, "g": g, "beta": beta}, l2norm=True)[0]


def comba(layer, p, x, q, k, v):
    erase = torch.sigmoid(p["decay"]).unsqueeze(-1) * k if layer.use_inner_decay else k
    q = q - p["D"].unsqueeze(-1) * erase if layer.use_output_correction else q
    given = {"q": q, "k": k, "v": v, "p": erase, "g": scalar_decay(layer, p, x),
             "beta": torch.sigmoid(linear(p, "b_proj", x))}
    return family.truth("comba", given, l2norm=True)[0]


def gla(layer, p, x, q, k, v):
    raw = linear(p, "gk_proj", x)
    g = (-softplus(-raw) / layer.gate_logit_normalizer).view(k.shape)
    g = g if layer.clamp_min is None else g.clamp(min=layer.clamp_min)
    k, v, g = (t.repeat_interleave(layer.num_heads // layer.num_kv_heads, 2) for t in (k, v, g))
    act = ACTS[layer.feature_map]
    return family.truth("gla", {"q": act(q), "k": act(k), "v": v, "g": g})[0]


RULES = {"DeltaNet": (delta_net, "swish"), "GatedDeltaProduct": (gated_deltaproduct, "swish"),
         "GatedDeltaNet2": (gdn2, "sigmoid"), "KimiDeltaAttention": (kda, "sigmoid"), "Comba": (comba, "sigmoid"),
         "GatedLinearAttention": (gla, None)}
"""By layer: its rule, and the activation of its output gate."""


def forward(layer, parameters, x):
    """``[B, T, D]`` through a layer of `RULES`."""
    rule, gate_act = RULES[layer.who]
    own = layer.who == "DeltaNet" and layer.qk_activation != "silu"
    plain = layer.who == "GatedLinearAttention"
    parts = []
    for name, heads in (("q", layer.num_heads), ("k", getattr(layer, "num_kv_heads", layer.num_heads)), ("v", None)):
        act = None if own and name != "v" else "silu"
        y = convolved(layer, parameters, x, name, act, None if plain else act)
        if name == "v":
            heads = getattr(layer, "num_kv_heads", getattr(layer, "num_v_heads", layer.num_heads))
        parts.append(y.view(*x.shape[:2], -1, y.shape[2] // heads if layer.who != "GatedDeltaProduct" else (
            layer.head_v_dim if name == "v" else layer.head_k_dim)))
    o = rule(layer, parameters, x, *parts)
    norm = "g_norm_swish_gate" if "g_norm_swish_gate.weight" in parameters else "g_norm" if plain else "o_norm"
    o = o / (o.square().mean(-1, keepdim=True) + layer.norm_eps).sqrt() * parameters[f"{norm}.weight"]
    if "g_proj.weight" in parameters or "g_proj.0.weight" in parameters:
        o = o * ACTS[gate_act or layer.gate_fn](linear(parameters, "g_proj", x).view(o.shape))
    return linear(parameters, "o_proj", o.flatten(2))
