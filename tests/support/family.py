"""The members of the delta rule's family: their ops, inputs for them, and each as a float64 token loop.

A new member is a row of `MEMBERS`; every property of tests/myfla/ops/test_family.py then holds it.
"""

from typing import Any, Callable, Dict, NamedTuple, Optional, Tuple

import torch

from myfla.ops.comba import chunk_comba, fused_recurrent_comba
from myfla.ops.delta_rule import chunk_delta_rule, fused_recurrent_delta_rule
from myfla.ops.gated_delta_product import chunk_gated_delta_product, fused_recurrent_gated_delta_product
from myfla.ops.gdn2 import chunk_gdn2, fused_recurrent_gdn2
from myfla.ops.gla import chunk_gla, fused_recurrent_gla
from myfla.ops.kda import chunk_kda, fused_recurrent_kda
from myfla.ops.simple_gla import chunk_simple_gla, fused_recurrent_simple_gla
from myfla.ops.ssd import chunk_ssd, fused_recurrent_ssd


class Member(NamedTuple):
    """A member's two forms, and what it is given."""

    chunk: Callable[..., Any]
    recurrent: Callable[..., Any]
    inputs: Tuple[str, ...]  # names of tensors beside q, k, v, from `SHAPES`
    steps: int = 1  # steps of the rule for each token
    grouped: bool = True  # takes more value heads than query heads
    options: Tuple[Tuple[str, Any], ...] = ()
    renamed: Tuple[Tuple[str, str], ...] = ()  # of the recurrent form: (its name, the chunk form's name)
    l2norm: bool = True  # takes use_qk_l2norm_in_kernel
    corrects: bool = True  # has the delta rule's correction
    scaled: bool = True  # takes a factor on q
    called: Tuple[Tuple[str, str], ...] = ()  # (its name, ours) of q, k and v
    per_head: Tuple[str, ...] = ()  # names of tensors [HV], from `PER_HEAD`


MEMBERS: Dict[str, Member] = {
    "delta_rule": Member(chunk_delta_rule, fused_recurrent_delta_rule, ("beta",)),
    "gated_delta_product": Member(
        chunk_gated_delta_product, fused_recurrent_gated_delta_product, ("g", "beta"), steps=3,
        options=(("num_householder", 3),)),
    "comba": Member(chunk_comba, fused_recurrent_comba, ("p", "g", "beta")),
    "kda": Member(chunk_kda, fused_recurrent_kda, ("gk", "beta")),
    "gla": Member(chunk_gla, fused_recurrent_gla, ("gk",), renamed=(("gk", "g"),), l2norm=False, corrects=False),
    "simple_gla": Member(chunk_simple_gla, fused_recurrent_simple_gla, ("g",), l2norm=False, corrects=False),
    "gdn2": Member(chunk_gdn2, fused_recurrent_gdn2, ("gk", "b", "w")),
    "ssd": Member(
        chunk_ssd, fused_recurrent_ssd, ("dt", "z"), options=(("dt_softplus", True),), l2norm=False, corrects=False,
        scaled=False, called=(("C", "q"), ("B", "k"), ("x", "v")), per_head=("A", "D", "dt_bias")),
}
PER_HEAD = {"A": (-1.5, -0.5), "D": (-1.0, 1.0), "dt_bias": (-0.5, 0.5)}
"""From which to which number they go; in float32, which leaves the format of sums to the other inputs."""


def inputs(
    name: str, batch: int = 2, tokens: int = 37, heads: int = 2, value_heads: int = 2, key: int = 8, value: int = 12,
    decay: float = 1.0, dtype: torch.dtype = torch.float64, seed: int = 0,
) -> Dict[str, torch.Tensor]:  # fmt: skip
    """Random arguments of a member's chunk form, by name; keys have length one."""
    torch.manual_seed(seed)
    steps = MEMBERS[name].steps
    long = tokens * steps
    made: Dict[str, torch.Tensor] = {
        "q": torch.randn(batch, tokens, heads, key, dtype=torch.float64),
        "k": torch.nn.functional.normalize(torch.randn(batch, long, heads, key, dtype=torch.float64), dim=-1),
        "v": torch.randn(batch, long, value_heads, value, dtype=torch.float64),
    }
    shapes = {
        "beta": lambda: torch.rand(batch, long, value_heads, dtype=torch.float64),
        "g": lambda: -decay * torch.rand(batch, tokens, value_heads, dtype=torch.float64),
        "gk": lambda: -decay * torch.rand(batch, tokens, value_heads, key, dtype=torch.float64),
        "p": lambda: torch.nn.functional.normalize(torch.randn(batch, tokens, heads, key, dtype=torch.float64), dim=-1),
        "b": lambda: torch.rand(batch, tokens, value_heads, key, dtype=torch.float64),
        "w": lambda: torch.rand(batch, tokens, value_heads, value, dtype=torch.float64),
        "dt": lambda: decay * torch.rand(batch, tokens, value_heads, dtype=torch.float64),
        "z": lambda: torch.randn(batch, tokens, value_heads, value, dtype=torch.float64),
    }
    for part in MEMBERS[name].inputs:
        made["g" if part == "gk" else part] = shapes[part]()
    return {part: x.to(dtype) for part, x in made.items()}


def run(name: str, form: str, given: Dict[str, torch.Tensor], **more: Any) -> Tuple[torch.Tensor, torch.Tensor]:
    """A member's form ``chunk`` or ``recurrent``; always with the final state."""
    member = MEMBERS[name]
    op = member.chunk if form == "chunk" else member.recurrent
    return op(**arguments(name, form, given), output_final_state=True, **more)


def arguments(name: str, form: str, given: Dict[str, torch.Tensor]) -> Dict[str, Any]:
    """A member's arguments under the names of one of its forms, with its options."""
    member = MEMBERS[name]
    renamed = (member.renamed if form == "recurrent" else ()) + member.called
    ours = {our: their for their, our in renamed}
    value_heads = given["v"].shape[2] if given["v"].dim() > 2 else 1
    return {**{ours.get(part, part): x for part, x in given.items()}, **dict(member.options),
            **per_head(name, value_heads)}


def per_head(name: str, heads: int) -> Dict[str, torch.Tensor]:
    """A member's tensors ``[HV]``."""
    return {part: torch.linspace(*PER_HEAD[part], heads) for part in MEMBERS[name].per_head}


def truth(
    name: str, given: Dict[str, torch.Tensor], initial_state: Optional[torch.Tensor] = None,
    cu_seqlens: Optional[torch.Tensor] = None, scale: Optional[float] = None, l2norm: bool = False,
    steps: Optional[int] = None,
) -> Tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """The member's equations, one token after another, in float64.

    ``S <- diag(e^g) S``, then for each step ``S <- S + k (write * v - strength * S^T erase)^T``; ``o = scale S^T q``.
    With ``p``, what is read is the state before it decays; with ``gv``, value channels decay as well. With ``dt``,
    values and the log decay A are multiplied by the time step, ``D v`` passes by the state, and z gates the outputs.
    """
    x = {part: tensor.double() for part, tensor in given.items()}
    heads = {part: tensor.double() for part, tensor in per_head(name, x["v"].shape[2]).items()}
    skipped = heads["D"].unsqueeze(-1) * x["v"] if "D" in heads else 0
    if "dt" in x:
        dt = (1 + (x["dt"] + heads["dt_bias"]).exp()).log()
        x["v"], x["g"] = dt.unsqueeze(-1) * x["v"], heads["A"] * dt
    steps, group = steps or MEMBERS[name].steps, x["v"].shape[2] // x["q"].shape[2]
    if l2norm:
        for part in ("q", "k", "p"):
            if part in x:
                x[part] = x[part] / (x[part].square().sum(-1, keepdim=True) + 1e-6).sqrt()
    q, k = (x[part].repeat_interleave(group, 2) for part in ("q", "k"))
    erase, strength, write = k, torch.ones_like(x["v"][..., :1]), torch.ones_like(x["v"])
    if "p" in x:
        erase = x["p"].repeat_interleave(group, 2)
    if "beta" in x:
        strength = x["beta"] if x["beta"].dim() == 4 else x["beta"].unsqueeze(-1)
        write = strength.expand_as(x["v"])
    if "b" in x:
        erase, write = x["b"] * k, x["w"]
    g = x.get("g", torch.zeros_like(x["v"][:, ::steps, :, 0]))
    g = g.unsqueeze(-1) if g.dim() == 3 else g
    scale = scale or (q.shape[3] ** -0.5 if MEMBERS[name].scaled else 1.0)
    rows = [(i, 0, q.shape[1]) for i in range(q.shape[0])]
    if cu_seqlens is not None:
        offsets = [int(o) for o in cu_seqlens]
        rows = [(0, start, stop) for start, stop in zip(offsets[:-1], offsets[1:])]
    outputs, finals = [], []
    corrects = MEMBERS[name].corrects
    for n, (row, start, stop) in enumerate(rows):
        state = q.new_zeros(q.shape[2], q.shape[3], x["v"].shape[3])
        state = state if initial_state is None else initial_state[n].double()
        for t in range(start, stop):
            before = state
            state = g[row, t].exp().unsqueeze(-1) * state
            state = x["gv"][row, t].exp().unsqueeze(1) * state if "gv" in x else state
            for j in range(t * steps, (t + 1) * steps):
                read = torch.einsum("hkv,hk->hv", before if "p" in x else state, erase[row, j]) if corrects else 0
                new = write[row, j] * x["v"][row, j] - strength[row, j] * read
                state = state + k[row, j].unsqueeze(-1) * new.unsqueeze(1)
            outputs.append(scale * torch.einsum("hkv,hk->hv", state, q[row, t]))
        finals.append(state)
    shape = (*q.shape[:3], x["v"].shape[3])
    o = (torch.stack(outputs).view(shape) if outputs else q.new_zeros(shape)) + skipped
    return o * x["z"] / (1 + (-x["z"]).exp()) if "z" in x else o, torch.stack(finals)


def gradients(name, form, given, state, **more):
    """Outputs, final state, and the gradients of a loss that weighs all of them."""
    leaves = {part: x.clone().requires_grad_() for part, x in {**given, "initial_state": state}.items()}
    first = leaves.pop("initial_state")
    if form == "truth":
        o, final = truth(name, leaves, first, **more)
    else:
        o, final = run(name, form, leaves, initial_state=first, **more)
    generator = torch.Generator().manual_seed(1)
    do, dfinal = (torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in (o, final))
    loss = (o.double() * do).sum() + (final.double() * dfinal).sum()
    grads = torch.autograd.grad(loss, [*leaves.values(), first], allow_unused=True)
    grads = [torch.zeros_like(x) if grad is None else grad for x, grad in zip([*leaves.values(), first], grads)]
    return {"o": o, "final": final, **{f"d{part}": x for part, x in zip([*leaves, "initial_state"], grads)}}


def state_for(given, rows=2):
    heads, key, value = given["v"].shape[2], given["q"].shape[3], given["v"].shape[3]
    return torch.randn(rows, heads, key, value, dtype=given["q"].dtype)
