"""All implementations of both ops, as they are or compiled."""

from typing import Callable, Dict

import torch

from benchmarks import peers_onnx
from benchmarks.measure import Missing
from benchmarks.peers import GATED, Op
from benchmarks.peers_rwkv7 import RWKV7

OPS: Dict[str, Dict[str, Callable[..., Op]]] = {
    "gated delta rule": {**GATED, peers_onnx.ONNXRUNTIME: peers_onnx.gated},
    "RWKV-7": RWKV7,
}

COMPILED = ", compiled"
"""Ending of the name of our side with ``backend="compiled"``."""


def load_op(op: str, side: str) -> Op:
    """One implementation; raises `Missing` if it is not there."""
    if not side.endswith(COMPILED):
        return OPS[op][side]()
    if not hasattr(torch, "compile"):
        raise Missing(f"torch {torch.__version__} has no torch.compile")
    torch._dynamo.reset()
    return OPS[op][side[: -len(COMPILED)]](backend="compiled")
