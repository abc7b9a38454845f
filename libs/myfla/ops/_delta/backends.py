"""The back ends of this library, in the order in which they are tried.

==========  ========  =====================================================================================
name        choice    what it is
==========  ========  =====================================================================================
official    fla       the official kernels
naive       naive     the token loop, which is the specification
compiled    compiled  plain operations through ``torch.compile``
native      native    compiled kernels for CPUs, where myfla-native is installed
native      native    the same as operations of a graph that ``torch.compile`` records
graph
bf16        torch     bfloat16 on the matrix units of a GPU
traced      torch     plain operations, for compilers, exporters and function transforms
loop        torch     the recurrent form
plain       torch     the chunk form, written by hand in both directions
==========  ========  =====================================================================================
"""

from typing import Any, Optional

from myfla.backends import official
from myfla.backends.choice import why_not
from myfla.backends.compiler import compiled
from myfla.ops._delta.bf16 import dplr, gated_delta, kda
from myfla.ops._delta.bf16.chunks import bf16_chunks, bf16_problem
from myfla.ops._delta.bf16.graph import graph_chunks
from myfla.ops._delta.call import Call, Result, call_tensors, is_step, recurrent_only
from myfla.ops._delta.chunk.autograd import chunk_rule, loop_rule, plan_chunks
from myfla.ops._delta.dispatch import Backend, register, select
from myfla.ops._delta.families.dplr import DPLR
from myfla.ops._delta.families.gated_delta import GATED_DELTA
from myfla.ops._delta.families.gla import GLA, SIMPLE_GLA
from myfla.ops._delta.families.kda import KDA
from myfla.ops._delta.native import NATIVE, native_problem, native_reserve, plan_native, run_native
from myfla.ops._delta.native_graph import native_graph_problem, run_native_graph
from myfla.ops._delta.recurrent.loop import plan_token, token_loop
from myfla.ops._delta.traced.chunks import traced_rule
from myfla.ops._delta.traced.graph import graph_rule, make_graph_op
from myfla.utils.dtypes import without_autocast
from myfla.utils.graph_op import takes_graph_ops
from myfla.utils.tracing import compiling, exporting, tracing

__all__ = ["select"]

_BF16 = {"gated_delta": gated_delta.GATED_DELTA, "kda": kda.KDA, "dplr": dplr.DPLR}


def _why_not(choice: str, call: Call) -> Optional[str]:
    q, k, *others = call_tensors(call)
    return why_not(choice, call.family.kernels[call.form], q, k, *others)


def _official_problem(call: Call) -> Optional[str]:
    return _why_not("fla", call)


def _official_reserve(call: Call) -> Optional[str]:
    return _why_not("auto", call)


def _run_official(call: Call) -> Result:
    run = official.kernel(call.family.kernels[call.form])
    cu_seqlens = None if call.cu_seqlens is None else call.cu_seqlens.long()
    return run(
        scale=call.scale, initial_state=call.initial_state, output_final_state=True, cu_seqlens=cu_seqlens,
        **call.family.official(call),
    )  # fmt: skip


def _naive_problem(call: Call) -> Optional[str]:
    if recurrent_only(call):
        return "the specification has neither gk nor gv nor a beta for each channel"
    return None


def _run_naive(call: Call) -> Result:
    call = call.normalised().activated(zero_g=True)
    return _naive(call.x[2], call)


@without_autocast
def _naive(_: Any, call: Call) -> Result:
    o, final = call.family.naive(call)
    return o.to(call.out_dtype), final


def _run_traced(call: Call) -> Result:
    if is_step(call) and call.form == "recurrent":
        fused = call.x[0].device.type == "cuda" and compiling() and not exporting()
        return call.family.traced_step(call) if fused else token_loop(call)
    if recurrent_only(call):
        return token_loop(call)
    if takes_graph_ops():
        return graph_rule(call)
    return traced_rule(call)


def _bf16_problem(call: Call) -> Optional[str]:
    if tracing(call.x[0]) and not takes_graph_ops():
        return "of all that record a call only torch.compile can use it"
    count = 5 if call.family is DPLR else 3
    return bf16_problem(call.x[:count], *call_tensors(call)[count:])


def _run_bf16(call: Call, fuse: bool = False) -> Result:
    call = call.activated()
    family, state = _BF16[call.family.name], call.initial_state
    if tracing(call.x[0]):
        return graph_chunks(
            family, call.x, state, call.scale, call.chunk_size, call.l2norm, call.lower_bound, call.cu_seqlens
        )

    def plain(*given: Any) -> Result:
        return traced_rule(call._replace(x=given[:-1], initial_state=given[-1]))

    return bf16_chunks(
        family, call.x, state, call.scale, plain, call.cu_seqlens, call.chunk_size, fuse=fuse, l2norm=call.l2norm,
        lower_bound=call.lower_bound,
    )  # fmt: skip


def _compiled_problem(call: Call) -> Optional[str]:
    return _why_not("compiled", call)


def _run_compiled(call: Call) -> Result:
    if call.form == "chunk" and call.family.name in _BF16 and _bf16_problem(call) is None:
        return _run_bf16(call, fuse=True)
    return compiled(_compiled_rule)(call)


def _compiled_rule(call: Call) -> Result:
    """The whole op for a compiler, which fuses the operations around the rule with it."""
    if is_step(call) and call.form == "recurrent" and call.x[0].device.type == "cuda":
        return call.family.traced_step(call)
    return _run_traced(call)


for family in (GATED_DELTA, KDA, DPLR, GLA, SIMPLE_GLA):
    make_graph_op(family)
register(Backend("official", "fla", _run_official, _official_problem, _official_reserve, device="cuda", traced=False))
register(Backend("naive", "naive", _run_naive, _naive_problem, on_request=True))
register(Backend("compiled", "compiled", _run_compiled, _compiled_problem, on_request=True))
register(
    Backend(
        "native", "native", run_native, native_problem, native_reserve, NATIVE, "cpu", traced=False, plan=plan_native
    )
)
register(
    Backend(
        "native graph", "native", run_native_graph, native_graph_problem, native_reserve, NATIVE, "cpu", traced=True
    )
)
register(Backend("bf16", "torch", _run_bf16, _bf16_problem, families=_BF16, device="cuda", form="chunk"))
register(Backend("traced", "torch", _run_traced, traced=True))
register(Backend("loop", "torch", loop_rule, form="recurrent", plan=plan_token))
register(Backend("plain", "torch", chunk_rule, plan=plan_chunks))
