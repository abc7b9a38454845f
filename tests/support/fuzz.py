"""Calls that are right, and ways to spoil them; and what may come of a spoilt call.

`SUBJECTS` lists every public function and module that takes tensors: a right call of each. A fuzzer changes some
arguments; then the call must give what the same values give in float64, or be refused by an error that names who was
called.
"""

import dataclasses
import math
import re
from typing import Any, Callable, Dict

import torch
from hypothesis import strategies as st

import gdn_layer
import rwkv7_layers
from myfla.layers.utils import get_unpad_data, index_first_axis, index_put_first_axis, pad_input, unpad_input
from myfla.models.rwkv7 import RWKV7FeedForward
from myfla.modules import (
    FusedLayerNormGated,
    FusedRMSNormGated,
    GatedMLP,
    GroupNorm,
    L2Norm,
    LayerNorm,
    RMSNorm,
    ShortConvolution,
)
from myfla.modules.token_shift import token_shift
from myfla.ops import utils as index
from myfla.ops.generalized_delta_rule import chunk_dplr_delta_rule, fused_recurrent_dplr_delta_rule
from myfla.ops.rwkv7 import fused_mul_recurrent_rwkv7
from small_encoders import small
from state_subjects import OPS, op_state

#: What a refusal looks like: who, then the matter; ``Class.method`` and ``function(argument)`` are fine.
NAMED = re.compile(r"^[A-Za-z_][\w.]*(\([^)]*\))?: ")
ERRORS = (ValueError, TypeError, NotImplementedError)


@dataclasses.dataclass
class Call:
    """A right call: ``call(**arguments)``.

    Attributes:
        call: the function, with modules of the dtype that the arguments have: ``make(dtype)`` gives it.
        arguments: makes them, float32.
    """

    make: Callable[[torch.dtype], Callable]
    arguments: Callable[[], Dict[str, Any]]


def _draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _op(name):
    def arguments():
        given = OPS[name].inputs(2, 5)
        return {**given, "scale": 0.5, "initial_state": op_state(name, 2), "output_final_state": True,
                "cu_seqlens": None}

    return Call(lambda dtype: OPS[name].function, arguments)


def _packed_op(name):
    def arguments():
        given = OPS[name].inputs(1, 7)
        return {**given, "initial_state": op_state(name, 3), "output_final_state": True,
                "cu_seqlens": torch.tensor([0, 2, 2, 7])}

    return Call(lambda dtype: OPS[name].function, arguments)


def _dplr(function):
    def arguments():
        given = OPS["rwkv7_chunk"].inputs(2, 5)
        return dict(q=given["r"], k=given["k"], v=given["v"], a=given["a"], b=given["b"], gk=given["w"],
                    initial_state=op_state("rwkv7_chunk", 2), output_final_state=True)

    return Call(lambda dtype: function, arguments)


def _fused_mul():
    given = OPS["rwkv7_chunk"].inputs(2, 5)
    return dict(r=given["r"], w=given["w"], k=given["k"], v=given["v"], kk=-given["a"], a=given["b"].abs(),
                initial_state=op_state("rwkv7_chunk", 2), output_final_state=True)


def _module(build, *names, shape=(2, 5, 8), **more):
    def make(dtype):
        torch.manual_seed(0)
        return build().to(dtype).eval()

    return Call(make, lambda: {**{name: _draw(*shape, seed=i) for i, name in enumerate(names)}, **more})


def _gdn_layer(dtype):
    layer = gdn_layer.build().to(dtype).eval()
    return lambda hidden_states, attention_mask, cu_seqlens: layer(
        hidden_states, attention_mask=attention_mask, cu_seqlens=cu_seqlens)[0]


def _rwkv7_layer(dtype):
    torch.manual_seed(0)  # the parameters that begin at random
    layer = rwkv7_layers.build(0).to(dtype).eval()
    return lambda hidden_states, attention_mask, cu_seqlens: layer(
        hidden_states, attention_mask=attention_mask, cu_seqlens=cu_seqlens)[0]


def _encoder(name):
    def make(dtype):
        encoder = small(name).to(dtype)
        return lambda x, lengths, attention_mask, cu_seqlens: encoder(
            x, lengths=lengths, attention_mask=attention_mask, cu_seqlens=cu_seqlens)[:2]

    return make


MASK = torch.tensor([[0, 1, 1, 0, 1], [1, 1, 1, 1, 1]])
CU = torch.tensor([0, 2, 2, 5])


def _plain(function, **arguments):
    return Call(lambda dtype: function, lambda: {
        name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in arguments.items()})


SUBJECTS: Dict[str, Call] = {
    **{name: _op(name) for name in OPS},
    **{f"{name}_packed": _packed_op(name) for name in OPS},
    "dplr_chunk": _dplr(chunk_dplr_delta_rule),
    "dplr_recurrent": _dplr(fused_recurrent_dplr_delta_rule),
    "rwkv7_fused_mul": Call(lambda dtype: fused_mul_recurrent_rwkv7, _fused_mul),
    "RMSNorm": _module(lambda: RMSNorm(8), "x", "residual"),
    "LayerNorm": _module(lambda: LayerNorm(8, bias=True), "x", "residual"),
    "GroupNorm": _module(lambda: GroupNorm(2, 8), "x", "residual"),
    "L2Norm": _module(lambda: L2Norm(), "x"),
    "FusedRMSNormGated": _module(lambda: FusedRMSNormGated(8), "x", "g", "residual"),
    "FusedLayerNormGated": _module(lambda: FusedLayerNormGated(8), "x", "g", "residual"),
    "GatedMLP": _module(lambda: GatedMLP(8, intermediate_size=12), "x"),
    "ShortConvolution": _module(lambda: ShortConvolution(8, 4, activation="silu"), "x", "residual",
                                cache=_draw(2, 8, 4), mask=MASK, output_final_state=True, cu_seqlens=None),
    "ShortConvolution_packed": _module(lambda: ShortConvolution(8, 4), "x", shape=(1, 5, 8), cu_seqlens=CU,
                                       cache=_draw(3, 8, 4), output_final_state=True),
    "RWKV7FeedForward": _module(lambda: RWKV7FeedForward(8, layer_idx=0, num_hidden_layers=2), "x",
                                attention_mask=MASK),
    "token_shift": _plain(token_shift, x=_draw(1, 5, 8), cu_seqlens=CU),
    "GatedDeltaNet": Call(_gdn_layer, lambda: dict(
        hidden_states=_draw(2, 5, gdn_layer.D), attention_mask=MASK, cu_seqlens=None)),
    "RWKV7Attention": Call(_rwkv7_layer, lambda: dict(
        hidden_states=_draw(2, 5, 24), attention_mask=MASK, cu_seqlens=None)),
    "GatedDeltaNet_packed": Call(_gdn_layer, lambda: dict(
        hidden_states=_draw(1, 5, gdn_layer.D), attention_mask=None, cu_seqlens=CU)),
    "RWKV7Attention_packed": Call(_rwkv7_layer, lambda: dict(
        hidden_states=_draw(1, 5, 24), attention_mask=None, cu_seqlens=CU)),
    "encoder_gdn": Call(_encoder("gated_deltanet"), lambda: dict(
        x=_draw(2, 5, 3), lengths=None, attention_mask=MASK, cu_seqlens=None)),
    "encoder_rwkv7": Call(_encoder("rwkv7"), lambda: dict(
        x=_draw(2, 5, 3), lengths=torch.tensor([3, 5]), attention_mask=None, cu_seqlens=None)),
    "encoder_packed": Call(_encoder("gated_deltanet"), lambda: dict(
        x=_draw(1, 5, 3), lengths=None, attention_mask=None, cu_seqlens=CU)),
    "get_unpad_data": _plain(get_unpad_data, attention_mask=MASK),
    "index_first_axis": _plain(index_first_axis, x=_draw(4, 3), indices=torch.tensor([3, 0])),
    "index_put_first_axis": _plain(index_put_first_axis, x=_draw(2, 3), indices=torch.tensor([3, 0]), first_axis_dim=5),
    "pad_input": _plain(pad_input, hidden_states=_draw(3, 4), indices=torch.tensor([0, 3, 5]), batch_size=2, seq_len=3),
    "unpad_input": _plain(unpad_input, q=_draw(2, 5, 3), states=(_draw(2, 5, 3),), attention_mask=MASK, q_len=5),
    **{name: _plain(getattr(index, name), cu_seqlens=CU)
       for name in ("prepare_lens", "prepare_position_ids", "prepare_sequence_ids", "prepare_token_indices")},
    **{name: _plain(getattr(index, name), cu_seqlens=CU, chunk_size=2)
       for name in ("prepare_chunk_indices", "prepare_chunk_offsets")},
    "prepare_lens_from_mask": _plain(index.prepare_lens_from_mask, mask=MASK),
    "prepare_cu_seqlens_from_mask": _plain(index.prepare_cu_seqlens_from_mask, mask=MASK),
    "prepare_cu_seqlens_from_lens": _plain(index.prepare_cu_seqlens_from_lens, lens=torch.tensor([2, 0, 3])),
}

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool,
          torch.complex64, torch.uint8)
ODD = (None, 0, -1, 3, 0.5, float("nan"), float("inf"), "text", True, [1, 2], (), {}, 10**30)


KINDS = ("dtype", "rank", "size", "empty", "strided", "grad", "odd", "meta", "values", "mirror")


@st.composite
def spoilt(draw, value):
    """Another value for an argument: often near the right one, at times nothing like it."""
    if not isinstance(value, torch.Tensor):
        return draw(st.sampled_from(ODD))
    kind = draw(st.sampled_from(KINDS))
    if kind == "dtype":
        return value.to(draw(st.sampled_from(DTYPES)))
    if kind == "rank":
        return draw(st.sampled_from([value[0], value[None], value[..., None], value.flatten(), value.sum()]))
    axis = draw(st.integers(0, value.dim() - 1))
    if kind == "size":
        return draw(st.sampled_from([torch.cat([value, value], axis), value.narrow(axis, 0, 1)]))
    if kind == "empty":
        return value.narrow(axis, 0, 0)
    if kind == "strided":
        return torch.stack([value, value], -1)[..., 0]
    if kind == "grad":
        return value.clone().requires_grad_() if value.is_floating_point() else value
    if kind == "meta":
        return value.to("meta")
    if kind == "mirror":
        return value.flip(axis)
    if kind == "values":
        filler = draw(st.sampled_from([0, 1, -1, 7, 100]))
        return torch.full_like(value, filler)
    return draw(st.sampled_from(ODD))


@st.composite
def calls(draw, name):
    """Arguments of a call with up to three of them spoilt."""
    arguments = SUBJECTS[name].arguments()
    for key in draw(st.lists(st.sampled_from(sorted(arguments)), max_size=3, unique=True)):
        arguments[key] = draw(spoilt(arguments[key]))
    return arguments


def tensors(tree):
    """All tensors of a result."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    return [t for part in tree for t in tensors(part)] if isinstance(tree, (tuple, list)) else []


def widened(tree):
    """Float64, contiguous, without gradients."""
    if isinstance(tree, torch.Tensor):
        wide = tree.detach().clone(memory_format=torch.contiguous_format)
        return wide.double() if wide.is_floating_point() else wide
    return tuple(map(widened, tree)) if isinstance(tree, tuple) else tree


def _short(value):
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {tuple(value.shape)} {value.device.type}"
    return list(map(_short, value)) if isinstance(value, (tuple, list)) else value


def judge(name, arguments):
    """Run a call. Returns ``"refused"`` or ``"right"``; anything else is an AssertionError that shows the call."""
    shown = {key: _short(value) for key, value in arguments.items()}
    subject = SUBJECTS[name]
    try:
        got = tensors(subject.make(torch.float32)(**arguments))
    except ERRORS as problem:
        assert NAMED.match(str(problem)), f"{name} {shown}: {type(problem).__name__} does not say who: {problem}"
        return "refused"
    except Exception as problem:
        raise AssertionError(f"{name} {shown}: {type(problem).__name__}: {problem}") from problem
    if any(t.is_meta for t in got):
        return "right"
    want = tensors(subject.make(torch.float64)(**{key: widened(value) for key, value in arguments.items()}))
    assert len(got) == len(want), f"{name} {shown}"
    for a, b in zip(got, want):
        assert a.shape == b.shape, f"{name} {shown}: {a.shape} {b.shape}"
        if a.is_floating_point():
            _near(a, b, f"{name} {shown}", arguments)
        else:
            assert torch.equal(a, b), f"{name} {shown}"
    return "right"


def _near(a, b, what, arguments):
    halves = [t for t in tensors(list(arguments.values())) if t.dtype in (torch.float16, torch.bfloat16)]
    bound = 0.1 if halves or a.dtype in (torch.float16, torch.bfloat16) else 1e-4
    a = a.detach().double()
    if not bool(torch.isfinite(b).all()) or (b.numel() and float(b.abs().max()) > 1e4):
        return  # beyond what the narrower formats hold
    scale = max(1.0, float(b.norm()) / math.sqrt(max(1, b.numel()))) if b.numel() else 1.0
    assert torch.isfinite(a).all() and (not b.numel() or float((a - b).abs().max()) <= 10 * bound * scale), what
