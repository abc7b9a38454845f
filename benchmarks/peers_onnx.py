"""onnxruntime's `LinearAttention` as a peer of the gated delta rule: forward on a CPU; it has no backward.

The operator came with onnxruntime 1.26 and is quick from 1.30 on. It reads and writes PyTorch's memory, so that only
its own work is timed. It does not normalise q and k; that is done before the call, as for other forms that do not
normalise.
"""

import functools
from typing import Any, Tuple

import torch

from benchmarks.measure import Missing
from benchmarks.peers import Op, optional, unit

__all__ = ["ONNXRUNTIME", "gated"]

ONNXRUNTIME = "onnxruntime"


def gated() -> Op:
    """``op(q, k, v, g, beta) -> o`` as in `benchmarks.peers.GATED`.

    Raises:
        Missing: no onnx, or an onnxruntime without the operator.
    """
    _session(1, 1, 1, 1, 1)

    def call(q, k, v, g, beta):
        if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v, g, beta)):
            raise Missing("onnxruntime's operator has no backward")
        return _run(unit(q), unit(k), v, g, beta)

    return call


@functools.lru_cache(maxsize=None)
def _session(batch: int, tokens: int, heads: int, size: int, threads: int) -> Any:
    """A model of the one operator for one shape."""
    helper, runtime = optional("onnx").helper, optional("onnxruntime")
    wide = [batch, tokens, heads * size]
    shapes = {"q": wide, "k": wide, "v": wide, "s": [batch, heads, size, size], "g": [*wide[:2], heads],
              "b": [*wide[:2], heads]}
    node = helper.make_node(
        "LinearAttention", list(shapes), ["o", "final"], domain="com.microsoft", q_num_heads=heads, kv_num_heads=heads,
        update_rule="gated_delta", scale=size**-0.5,
    )  # fmt: skip
    results = {"o": wide, "final": shapes["s"]}
    graph = helper.make_graph([node], "rule", *(
        [helper.make_tensor_value_info(name, 1, shape) for name, shape in of.items()] for of in (shapes, results)))
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=11)
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    try:
        return runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise Missing(f"onnxruntime {runtime.__version__} does not run LinearAttention: {error}") from error


def _run(*tensors: torch.Tensor) -> torch.Tensor:
    q, k, v, g, beta = (x.contiguous() for x in tensors)
    batch, tokens, heads, size = q.shape
    state = q.new_zeros(batch, heads, size, size)
    o, final = torch.empty_like(v), torch.empty_like(state)
    session = _session(batch, tokens, heads, size, torch.get_num_threads())
    binding = session.io_binding()
    for name, x in zip("qkvsgb", (q, k, v, state, g, beta)):
        binding.bind_input(name, *_where(x, name in "qkv"))
    binding.bind_output("o", *_where(o, True))
    binding.bind_output("final", *_where(final, False))
    session.run_with_iobinding(binding)
    return o


def _where(x: torch.Tensor, joined: bool) -> Tuple[Any, ...]:
    """The arguments of a binding; heads and channels are one axis of q, k, v and o."""
    shape = list(x.shape)
    return "cpu", 0, "float32", [*shape[:2], shape[2] * shape[3]] if joined else shape, x.data_ptr()
