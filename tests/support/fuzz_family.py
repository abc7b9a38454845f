"""Right calls of the delta rule's family, its ops and its layers, for `fuzz` to spoil: part of `fuzz_subjects`."""

import dataclasses
from typing import Any, Callable, Dict

import torch

import family
import family_layers
from myfla.ops.comba import naive_chunk_comba, naive_recurrent_comba
from myfla.ops.delta_rule.naive import delta_rule_chunkwise, delta_rule_parallel, delta_rule_recurrence
from myfla.ops.gdn2 import naive_chunk_gdn2, naive_recurrent_gdn2
from myfla.ops.gla import naive_recurrent_gla
from myfla.ops.kda import fused_kda_gate, naive_chunk_kda, naive_recurrent_kda
from myfla.ops.simple_gla import (
    fused_chunk_simple_gla,
    naive_chunk_simple_gla,
    naive_parallel_simple_gla,
    naive_recurrent_simple_gla,
    parallel_simple_gla,
)
from myfla.ops.ssd import mamba_chunk_scan_combined, naive_recurrent_ssd, selective_state_update

MASK = torch.tensor([[0, 1, 1, 0, 1], [1, 1, 1, 1, 1]])
CU = torch.tensor([0, 2, 2, 5])


@dataclasses.dataclass
class Call:
    """A right call: ``call(**arguments)``.

    Attributes:
        call: the function, with modules of the dtype that the arguments have: ``make(dtype)`` gives it.
        arguments: makes them, float32.
    """

    make: Callable[[torch.dtype], Callable]
    arguments: Callable[[], Dict[str, Any]]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _member(name, form, **sizes):
    """A member of the family, in one of its forms; float32."""
    def arguments():
        given = family.arguments(name, form, family.inputs(name, tokens=5, dtype=torch.float32, **sizes))
        rows = 3 if "batch" in sizes else 2
        return {**given, "initial_state": draw(rows, 2, 8, 12), "output_final_state": True,
                "cu_seqlens": CU if "batch" in sizes else None}

    return Call(lambda dtype: getattr(family.MEMBERS[name], form), arguments)


def _naive_member(name, function, form="chunk", **options):
    def arguments():
        given = family.arguments(name, form, family.inputs(name, tokens=5, dtype=torch.float32))
        return {**given, **options, "initial_state": draw(2, 2, 8, 12), "output_final_state": True}

    return Call(lambda dtype: function, arguments)


def _heads_first(function, **options):
    """The plain forms of the delta rule, ``[B, H, T, D]``."""
    def arguments():
        given = family.inputs("delta_rule", tokens=5, dtype=torch.float32)
        return {**{name: x.transpose(1, 2).contiguous() for name, x in given.items()}, **options}

    return Call(lambda dtype: function, arguments)


def _weights(function, **options):
    """A form that gives the weights of the values."""
    def arguments():
        return {**family.inputs("simple_gla", tokens=5, dtype=torch.float32), "scale": 0.5, **options}

    return Call(lambda dtype: function, arguments)


def _mamba_call():
    """Packed rows, with the state axes that Mamba's own code has."""
    def arguments():
        given = family.arguments("ssd", "chunk", family.inputs("ssd", tokens=5, dtype=torch.float32))
        return {**given, "chunk_size": 4, "initial_states": draw(2, 2, 12, 8), "return_final_states": True,
                "seq_idx": torch.tensor([[0, 0, 1, 1, 1], [0, 0, 0, 0, 0]])}

    return Call(lambda dtype: mamba_chunk_scan_combined, arguments)


def _state_update(*rows):
    """One token; returns the outputs and the state, which is written."""
    def make(dtype):
        def call(state, **given):
            state = state.clone() if isinstance(state, torch.Tensor) else state
            return selective_state_update(state, **given), state

        return call

    heads, groups = rows[1:], [2 for _ in rows[1:]]
    return Call(make, lambda: dict(
        state=draw(*rows, 6, 8), x=draw(*rows, 6), dt=draw(*rows, 6, seed=1), A=-draw(*heads, 6, 8).abs(),
        B=draw(2, *groups, 8), C=draw(2, *groups, 8, seed=2),
        D=draw(*heads, 6), z=draw(*rows, 6, seed=3), dt_bias=draw(*heads, 6, seed=4), dt_softplus=True,
        state_batch_indices=None))


def _family_layer(name):
    def make(dtype):
        layer = family_layers.build(name, torch.float32).to(dtype)  # the same parameters in every format
        return lambda hidden_states, attention_mask, cu_seqlens: layer(
            hidden_states, attention_mask=attention_mask, cu_seqlens=cu_seqlens)[0]

    return Call(make, lambda: dict(
        hidden_states=draw(2, 5, family_layers.D, seed=3), attention_mask=MASK, cu_seqlens=None))


FAMILY: Dict[str, Call] = {
    **{getattr(member, form).__name__: _member(name, form)
       for name, member in family.MEMBERS.items() for form in ("chunk", "recurrent")},
    **{f"{name}_packed": _member(name, "chunk", batch=1) for name in family.MEMBERS},
    "naive_recurrent_comba": _naive_member("comba", naive_recurrent_comba, scale=0.5),
    "naive_chunk_comba": _naive_member("comba", naive_chunk_comba, scale=0.5, chunk_size=2),
    "naive_recurrent_gdn2": _naive_member("gdn2", naive_recurrent_gdn2, scale=0.5),
    "naive_chunk_gdn2": _naive_member("gdn2", naive_chunk_gdn2, scale=0.5, chunk_size=2),
    "naive_recurrent_simple_gla": _naive_member("simple_gla", naive_recurrent_simple_gla, scale=0.5),
    "naive_chunk_simple_gla": _naive_member("simple_gla", naive_chunk_simple_gla, scale=0.5, chunk_size=2),
    "naive_parallel_simple_gla": _weights(naive_parallel_simple_gla),
    "parallel_simple_gla": _weights(parallel_simple_gla, output_attentions=True),
    "fused_chunk_simple_gla": _naive_member("simple_gla", fused_chunk_simple_gla, scale=0.5, cu_seqlens=None),
    "delta_rule_recurrence": _heads_first(
        delta_rule_recurrence, initial_state=draw(2, 2, 8, 12), output_final_state=True),
    "delta_rule_chunkwise": _heads_first(delta_rule_chunkwise, chunk_size=2),
    "delta_rule_parallel": _heads_first(delta_rule_parallel),
    **{f"{name}_chunk_states": _naive_member(name, family.MEMBERS[name].chunk, return_intermediate_states=True)
       for name in ("kda", "gdn2")},
    "naive_recurrent_kda": _naive_member("kda", naive_recurrent_kda, scale=0.5),
    "naive_chunk_kda": _naive_member("kda", naive_chunk_kda, scale=0.5, chunk_size=2),
    "naive_recurrent_gla": _naive_member("gla", naive_recurrent_gla, form="recurrent"),
    "naive_recurrent_ssd": _naive_member("ssd", naive_recurrent_ssd, dt_limit=(0.0, 0.9)),
    "mamba_chunk_scan_combined": _mamba_call(),
    "selective_state_update": _state_update(2, 4),
    "selective_state_update_without_heads": _state_update(2),
    "fused_kda_gate": Call(lambda dtype: fused_kda_gate, lambda: dict(
        g=draw(2, 5, 2, 4), A_log=draw(2), dt_bias=draw(8))),
    **{name: _family_layer(name) for name in family_layers.ALL},
}
