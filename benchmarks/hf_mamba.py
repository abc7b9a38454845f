"""Models of transformers with Mamba-2, and with short convolutions alone, with and without `use_myfla`.

    OMP_NUM_THREADS=1 python -m benchmarks.hf_mamba [--family mamba2] [--tokens 2048] [--rounds 3]

The way of `benchmarks.hf_models`: one process, the same weights, both sides in turn, medians of process time; the first
round is not timed, and there both sides must give the same. Every model is 1024 wide, with 4 layers and a vocabulary of
8192, and otherwise as its configuration stands.
"""

import argparse
import functools
import inspect
from typing import Any, Dict

import torch
import transformers
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.utils import logging

from benchmarks.hf_models import compare, prefill, train

WIDTH = dict(hidden_size=1024, num_hidden_layers=4, vocab_size=8192)
MODELS: Dict[str, Dict[str, Any]] = {
    "mamba2": dict(WIDTH, num_heads=32, n_groups=1),
    "granitemoehybrid": dict(
        WIDTH, layer_types=["mamba", "mamba", "mamba", "attention"], num_attention_heads=16, mamba_n_heads=32,
        mamba_d_state=128, num_local_experts=0, shared_intermediate_size=2816),
    "lfm2": dict(
        WIDTH, layer_types=["conv", "conv", "full_attention", "conv"], num_attention_heads=16, num_key_value_heads=8,
        intermediate_size=4096),
}  # fmt: skip
"""By family, what differs from its configuration's defaults."""


def build(family: str) -> torch.nn.Module:
    """The model, randomly initialised."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**MODELS[family])
    config.pad_token_id = config.bos_token_id = config.eos_token_id = 0
    return AutoModelForCausalLM.from_config(config).eval()


def decode(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Sixteen tokens, one at a time."""
    known = inspect.signature(model.forward).parameters
    name = next(name for name in ("cache", "cache_params", "past_key_values") if name in known)
    with torch.no_grad():
        out = model(ids[:, :16], use_cache=True)
        for t in range(16, 32):
            out = model(ids[:, t : t + 1], **{name: getattr(out, name)}, use_cache=True)
    return out.logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--family", choices=list(MODELS), action="append")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(1)
    print(f"{options.tokens} tokens, float32, one thread, transformers {transformers.__version__}")
    print(f"{'':28s}{'transformers':>14s}{'myfla':>12s}{'ratio':>8s}")
    for family in options.family or MODELS:
        model = build(family)
        ids = torch.randint(1, model.config.vocab_size, (1, max(options.tokens, 32)))
        for work in (prefill, decode, train):
            compare(f"{family} {work.__name__}", functools.partial(work, model, ids), options.rounds, 1e-5, family)


if __name__ == "__main__":
    main()
