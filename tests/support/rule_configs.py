"""Random calls of the compiled delta rules, in memory with guards around every tensor, and their float64 truth."""

import random
from typing import Dict, List, NamedTuple, Optional

import torch

KINDS = ("gated", "kda", "dplr")
GUARD = 64
"""Elements before and after every tensor that nobody may touch."""


class Config(NamedTuple):
    """One call."""

    kind: str
    tensors: Dict[str, torch.Tensor]  # q, k, v, g, beta or a and b, initial_state, A_log, dt_bias
    options: Dict[str, object]  # scale, l2norm, beta_scale, cu_seqlens, lower_bound
    out_dtype: torch.dtype
    gradients: Dict[str, Optional[torch.Tensor]]  # do, dfinal
    buffers: List[torch.Tensor]  # what lies behind the tensors, guards too


class Guarded:
    """Allocates tensors inside of larger buffers, and tells whether anything around them was written."""

    def __init__(self) -> None:
        self.made: List[tuple] = []

    def empty(self, shape, *, dtype):
        """Contiguous, full of NaN."""
        size = 1
        for n in shape:
            size *= n
        buffer = torch.full((size + 2 * GUARD,), float("nan"), dtype=dtype)
        buffer[:GUARD] = buffer[GUARD + size :] = 77
        inside = buffer[GUARD : GUARD + size].view(shape)
        self.made.append((buffer, size))
        return inside

    def intact(self) -> bool:
        return all((b[:GUARD] == 77).all() and (b[GUARD + n :] == 77).all() for b, n in self.made)


def draw(seed: int) -> Config:
    """A random call: sizes, layouts in memory, number formats and options."""
    choose = random.Random(seed)
    torch.manual_seed(seed)
    kind = choose.choice(KINDS)
    sizes = (1, 2, 3, 4, 5, 7, 8, 12, 15, 16, 17, 24, 31, 32, 33, 48, 64, 65, 100, 128)
    K, V = choose.choice(sizes), choose.choice(sizes)
    H = choose.choice((1, 1, 2, 3))
    HV = H * (choose.choice((1, 1, 2, 3)) if kind != "dplr" else 1)
    T = choose.choice((0, 1, 1, 2, 3, 5, 15, 16, 17, 31, 32, 33, 40, 140, 300))  # a state is kept every 128
    B, cu = choose.choice((1, 2, 3)), None
    if choose.random() < 0.4:
        cuts = sorted(choose.randint(0, T) for _ in range(choose.randint(0, 4)))
        B, cu = 1, torch.tensor([0, *cuts, T], dtype=choose.choice((torch.int32, torch.int64)))
    N = B if cu is None else len(cu) - 1
    dtype = choose.choice((torch.float32, torch.float32, torch.bfloat16, torch.float16))
    buffers: List[torch.Tensor] = []

    def place(x, dtype):
        """x in memory of a random layout, with numbers around it that would be noticed."""
        x = x.to(dtype)
        order = list(range(x.dim()))
        if choose.random() < 0.5:
            choose.shuffle(order)
        step = choose.choice((1, 1, 1, 2))
        shape = [x.shape[d] for d in order]
        shape[-1] *= step
        size = 1
        for n in shape:
            size *= n
        buffer = torch.full((size + 2 * GUARD,), float("nan"), dtype=dtype)
        buffers.append(buffer)
        view = buffer[GUARD : GUARD + size].view(shape)[..., ::step]
        view = view.permute([order.index(d) for d in range(x.dim())])
        view.copy_(x)
        return view

    strong = choose.choice((0.1, 1.0, 1.0, 20.0))
    wide = H if kind == "dplr" else HV
    log_decay = -strong * torch.rand(B, T, wide, *(() if kind == "gated" else (K,)))
    if choose.random() < 0.1:
        log_decay[torch.rand_like(log_decay) < 0.1] = -float("inf")
    query, key = (torch.nn.functional.normalize(torch.randn(B, T, H, K), dim=-1) for _ in range(2))
    l2norm = kind != "dplr" and choose.random() < 0.5
    of_kda = random.Random(f"gate {seed}") if kind == "kda" else choose
    gate = kind != "dplr" and of_kda.random() < 0.5
    lower_bound = of_kda.choice((-5.0, -0.5)) if kind == "kda" and gate and of_kda.random() < 0.5 else None
    beta_scale = choose.choice((0, 1, 2)) if kind != "dplr" else 0
    state_dtype = choose.choice((torch.float32, torch.float32, dtype))
    tensors = {
        "q": place(query * (0.5 + torch.rand(B, T, H, 1)), dtype),  # short ones have gradients that cancel
        "k": place(key * (0.5 + torch.rand(B, T, H, 1)) if l2norm else key, dtype),
        "v": place(torch.randn(B, T, HV, V), dtype),
        "g": place(torch.randn_like(log_decay) if gate else log_decay, choose.choice((torch.float32, dtype))),
    }
    if kind == "dplr":
        tensors["a"] = place(-key, dtype)
        tensors["b"] = place(key * torch.rand(B, T, H, K), dtype)
    else:
        beta = torch.rand(B, T, HV)
        tensors["beta"] = place(torch.randn_like(beta) if beta_scale else beta, choose.choice((torch.float32, dtype)))
    if gate:
        of_rate, of_bias = (of_kda.choice((torch.float32, dtype)) if kind == "kda" else torch.float32 for _ in range(2))
        if lower_bound is None or of_kda.random() < 0.7:
            tensors["A_log"] = place(torch.randn(HV), of_rate)
        if choose.random() < 0.7:
            tensors["dt_bias"] = place(torch.randn(HV if kind == "gated" else HV * K), of_bias)
    if choose.random() < 0.6:
        tensors["initial_state"] = place(torch.randn(N, HV, K, V), state_dtype)
    options = dict(scale=choose.choice((K**-0.5, 1.0, 0.3)), l2norm=l2norm, beta_scale=beta_scale, cu_seqlens=cu,
                   lower_bound=lower_bound)
    out_dtype = choose.choice((dtype, torch.float32))
    gradients = {
        "do": place(torch.randn(B, T, HV, V), out_dtype) if choose.random() < 0.9 else None,
        "dfinal": place(torch.randn(N, HV, K, V), torch.float32) if choose.random() < 0.6 else None,
    }
    return Config(kind, tensors, options, out_dtype, gradients, buffers)


def truth(config: Config):
    """In float64, token by token: o, final state, gradients by name, and by name how large the terms are that sum up to
    a gradient, where they cancel: to those of a norm's input and of a gate's parameters."""
    x = {name: t.double().requires_grad_() for name, t in config.tensors.items()}
    q, k, v, g = x["q"], x["k"], x["v"], x["g"]
    options = config.options
    norms = {name: (x[name].detach().square().sum(-1, keepdim=True) + 1e-6).sqrt() for name in "qk"}
    if options["l2norm"]:
        q, k = (y / (y.square().sum(-1, keepdim=True) + 1e-6).sqrt() for y in (q, k))
    rate = x["A_log"].exp().view(-1, *[1] * (g.dim() - 3)) if "A_log" in x else 1.0
    before = g + x["dt_bias"].view(g.shape[2:]) if "dt_bias" in x else g
    if options["lower_bound"] is not None:
        g = options["lower_bound"] * (rate * before).sigmoid()
    elif "A_log" in x:
        g = -rate * torch.nn.functional.softplus(before)
    inner = {"q": q, "k": k, "g": g}  # behind norm and gate
    if config.kind == "gated":
        g = g[..., None]
    group = v.shape[2] // q.shape[2]
    q, k = (y.repeat_interleave(group, dim=2) for y in (q * options["scale"], k))
    cu, (B, T, HV, V), K = options["cu_seqlens"], v.shape, q.shape[3]
    spans = [(slice(None), 0, T)] if cu is None else [(slice(0, 1), int(a), int(b)) for a, b in zip(cu[:-1], cu[1:])]
    outputs, finals = [], []
    for n, (rows, start, stop) in enumerate(spans):
        given = x.get("initial_state")
        state = v.new_zeros(B, HV, K, V) if given is None else given if cu is None else given[n : n + 1]
        for t in range(start, stop):
            kt, decay = k[rows, t, :, :, None], g[rows, t].exp()[..., None]
            if config.kind == "dplr":
                read = (x["a"][rows, t, :, :, None] * state).sum(-2, keepdim=True)
                state = decay * state + x["b"][rows, t, :, :, None] * read + kt * v[rows, t, :, None, :]
            else:
                beta = x["beta"][rows, t]
                beta = options["beta_scale"] * beta.sigmoid() if options["beta_scale"] else beta
                state = decay * state
                error = v[rows, t, :, None, :] - (kt * state).sum(-2, keepdim=True)
                state = state + kt * (beta[..., None, None] * error)
            outputs.append((q[rows, t, :, :, None] * state).sum(-2))
        finals.append(state)
    o = torch.stack(outputs, dim=1) if outputs else torch.zeros_like(v)
    final = finals[0] if cu is None else torch.cat(finals)
    loss = sum(0 * y.sum() for y in (o, final, *x.values(), *inner.values()))
    for result, name in ((o, "do"), (final, "dfinal")):
        if config.gradients[name] is not None:
            loss = loss + (result * config.gradients[name].double()).sum()
    grads = torch.autograd.grad(loss, [*x.values(), *inner.values()], allow_unused=True)
    want = {name: torch.zeros_like(x[name]) if d is None else d for name, d in zip(x, grads)}
    inside = dict(zip(inner, grads[len(x):]))
    terms = {name: inside[name] / norms[name] for name in "qk"} if options["l2norm"] else {}
    if inner["g"] is not x["g"]:
        of_rate = inside["g"] * inner["g"] if options["lower_bound"] is None else want["g"] * before.detach()
        terms["A_log"] = of_rate.abs().sum((0, 1, *range(3, of_rate.dim())))
        terms["dt_bias"] = want["g"].abs().sum((0, 1))
    return o, final, want, {name: y.abs().max().item() if y.numel() else 0.0 for name, y in terms.items()}
