"""A Qwen3-Next-like model of transformers, with and without `use_myfla`: prefill, decode and one training step.

    OMP_NUM_THREADS=1 python benchmarks/hf_models.py [--tokens 2048] [--rounds 3] [--dtype float32]

Both sides run in one process on the same weights, in turn; times are medians of process time, which on one thread does
not depend on other load of the machine. The first round is not timed: it checks that both sides give the same logits
and the same loss.

The model has the defaults of `Qwen3NextConfig`, except for width 1024, 4 layers (3 with the gated delta rule, 1 with
attention), 8 experts of which 2 are used for a token, and a vocabulary of 8192. Its matrix products are the same on
both sides. The lines below those of the model are the times of only those functions that `use_myfla` replaces, at the
shapes of the model.
"""

import argparse
import functools
import inspect
import statistics
import time
from contextlib import ExitStack
from typing import Callable, Dict, List
from unittest import mock

import torch
from transformers import Qwen3NextConfig, Qwen3NextForCausalLM
from transformers.models.qwen3_next import modeling_qwen3_next as modeling
from transformers.utils import logging

from myfla.integrations.hf_grouped import CACHES
from myfla.integrations.transformers import use_myfla
from myfla.testing import assert_close

SIDES = ("transformers", "myfla")
FAMILY = "qwen3_next"
CLOSE = {torch.float32: 1e-5, torch.bfloat16: 1e-1}  # half precision sends some tokens to other experts


def build(dtype: torch.dtype) -> torch.nn.Module:
    """The model, randomly initialised."""
    torch.manual_seed(0)
    small = dict(hidden_size=1024, num_hidden_layers=4, num_experts=8, num_experts_per_tok=2, vocab_size=8192)
    return Qwen3NextForCausalLM(Qwen3NextConfig(**small)).to(dtype).eval()


def prefill(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Read a prompt into a cache; logits of its last token."""
    with torch.no_grad():
        return model(ids, use_cache=True, logits_to_keep=1).logits


def decode(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Sixteen tokens, one at a time."""
    known = inspect.signature(model.forward).parameters
    name = next(name for name in CACHES if name in known)
    with torch.no_grad():
        out = model(ids[:, :16], use_cache=True)
        for t in range(16, 32):
            out = model(ids[:, t : t + 1], **{name: getattr(out, name)}, use_cache=True)
    return out.logits


def train(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Loss and gradients of one step."""
    model.zero_grad()
    loss = model(ids, labels=ids, use_cache=False).loss
    loss.backward()
    return loss.detach()[None]


def functions_alone(model: torch.nn.Module, tokens: int) -> Dict[str, Callable[[], torch.Tensor]]:
    """Calls of the replaced functions as in a layer of the model, forward only and with backward."""
    layer, dtype = model.model.layers[0].linear_attn, next(model.parameters()).dtype
    shape = (1, tokens, _query_heads(layer), layer.head_k_dim)
    q, k = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(2))
    v = torch.randn(1, tokens, layer.num_v_heads, layer.head_v_dim, dtype=dtype, requires_grad=True)
    g = -torch.rand(1, tokens, layer.num_v_heads)
    options = dict(g=g.requires_grad_(), beta=torch.rand(v.shape[:3], dtype=dtype).requires_grad_())
    x = torch.randn(1, tokens, layer.conv_dim, dtype=dtype, requires_grad=True)
    weight = layer.conv1d.weight.squeeze(1)

    def rule() -> torch.Tensor:
        return modeling.torch_chunk_gated_delta_rule(q, k, v, use_qk_l2norm_in_kernel=True, **options)[0]

    def convolution() -> torch.Tensor:
        return modeling.causal_conv1d_fn(x.transpose(1, 2), weight, None, activation="silu")

    def forward(call: Callable) -> Callable:
        return torch.no_grad()(call)

    def both(call: Callable) -> Callable:
        def run() -> torch.Tensor:
            out = call()
            out.backward(torch.ones_like(out))
            return out.detach()

        return run

    return {
        "rule": forward(rule), "rule, training": both(rule),
        "conv": forward(convolution), "conv, training": both(convolution),
    }  # fmt: skip


def _query_heads(layer: torch.nn.Module) -> int:
    """The number of query heads in a layer's call of the rule: that of the values in transformers 5.17, later that of
    the queries."""
    name, x = "torch_chunk_gated_delta_rule", layer.in_proj_qkvz.weight.new_zeros(1, 2, layer.hidden_size)
    with torch.no_grad(), mock.patch.object(modeling, name, wraps=getattr(modeling, name)) as rule:
        layer(x)
    return rule.call_args[0][0].shape[2]


def compare(name: str, work: Callable[[], torch.Tensor], rounds: int, close: float) -> None:
    """Time both sides in turn and print a line."""
    results: List[torch.Tensor] = []
    seconds: Dict[str, List[float]] = {side: [] for side in SIDES}
    for turn in range(rounds + 1):
        for side in SIDES:
            with ExitStack() as stack:
                if side == "myfla":
                    stack.enter_context(use_myfla(families=[FAMILY]))
                start = time.process_time()
                result = work()
                spent = time.process_time() - start
            if turn == 0:
                results.append(result)
            else:
                seconds[side].append(spent)
    assert_close(results[1], results[0], rms=close, name=name)
    theirs, ours = (statistics.median(seconds[side]) for side in SIDES)
    print(f"{name:28s}{theirs:12.3f} s{ours:10.3f} s{theirs / ours:8.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    model = build(dtype)
    ids = torch.randint(0, model.config.vocab_size, (1, max(options.tokens, 32)))
    size = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{options.tokens} tokens, {size:.0f}M parameters, {options.dtype}, one thread")
    print(f"{'':28s}{'transformers':>14s}{'myfla':>12s}{'ratio':>8s}")
    for work in (prefill, decode, train):
        compare(work.__name__, functools.partial(work, model, ids), options.rounds, CLOSE[dtype])
    for name, call in functions_alone(model, options.tokens).items():
        compare(name, call, options.rounds, CLOSE[dtype])


if __name__ == "__main__":
    main()
