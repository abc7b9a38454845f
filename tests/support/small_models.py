"""Small language models whose every parameter matters, and the prompts they are given."""

import torch

from myfla.models.auto import MODELS

KINDS = tuple(MODELS)
VOCABULARY = 61
_CLASSES = {kind: (config, language) for kind, (config, _, language) in MODELS.items()}
_SMALL = {
    "gated_deltanet": dict(hidden_size=32, head_dim=8, num_heads=2, num_v_heads=4, expand_v=2.0, intermediate_size=48),
    "delta_net": dict(hidden_size=32, num_heads=2, intermediate_size=48, use_gate=True),
    "gated_deltaproduct": dict(hidden_size=32, head_dim=8, num_heads=2, intermediate_size=48, num_householder=2,
                               use_forget_gate=True, allow_neg_eigval=True),
    "kda": dict(hidden_size=32, head_dim=8, num_heads=2, num_v_heads=4, expand_v=2.0, intermediate_size=48),
    "rwkv7": dict(hidden_size=32, head_dim=16, decay_low_rank_dim=8, gate_low_rank_dim=8, a_low_rank_dim=8,
                  v_low_rank_dim=8),
}


def small_config(kind, **overrides):
    """A config of two blocks."""
    fields = dict(num_hidden_layers=2, vocab_size=VOCABULARY, eos_token_id=None, **_SMALL[kind])
    return _CLASSES[kind][0](**{**fields, **overrides})


def small_model(kind, seed=0, dtype=torch.float32, **overrides):
    """A language model in evaluation mode. A fresh RWKV-7 ignores its blocks, so all weights are drawn again."""
    generator = torch.Generator().manual_seed(seed)
    model = _CLASSES[kind][1](small_config(kind, **overrides), dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if name.endswith("A_log") or name.endswith("dt_bias"):
                parameter.copy_(0.3 * noise)
            elif parameter.dim() > 1 and parameter.shape[-1] > 1:
                size = 1.0 if "embeddings" in name else parameter.shape[-1] ** -0.5
                parameter.copy_(size * noise)
            else:
                parameter.add_(0.1 * noise.to(parameter.dtype))
    return model.eval()


def prompt(batch=2, length=9, seed=1):
    """Token ids ``[batch, length]``, none of them 0."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, VOCABULARY, (batch, length), generator=generator)
