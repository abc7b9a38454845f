"""`myfla.layers.Mamba2` and the Mamba-2 layer of transformers on the same weights."""

import copy

import pytest
import torch

pytest.importorskip("transformers", minversion="5.15")

from transformers import Mamba2Config
from transformers.cache_utils import DynamicCache
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

from hf_small_models import OLD, in_float64
from myfla.layers import Mamba2
from myfla.models.utils import Cache
from myfla.testing import assert_close, cases
from small_encoders import wake

SIZES = {
    "groups": dict(num_heads=8, head_dim=8, state_size=6, n_groups=2, chunk_size=16, time_step_limit=(0.01, 0.3)),
    "plain": dict(num_heads=4, head_dim=16, state_size=8, n_groups=1, chunk_size=8, conv_kernel=3, use_bias=True,
                  use_conv_bias=False),
}
CLOSE = {torch.float32: 1e-5, torch.float64: 1e-11}


def pair(name, dtype):
    """transformers' layer and ours."""
    config = Mamba2Config(hidden_size=32, num_hidden_layers=1, **SIZES[name])
    torch.manual_seed(0)
    theirs = wake(Mamba2Mixer(config, layer_idx=0), scale=0.2).to(dtype)
    ours = Mamba2(
        hidden_size=32, head_dim=config.head_dim, state_size=config.state_size, n_groups=config.n_groups,
        conv_kernel=config.conv_kernel, use_bias=config.use_bias, use_conv_bias=config.use_conv_bias,
        dt_limit=tuple(config.time_step_limit), norm_eps=config.layer_norm_epsilon, layer_idx=0, dtype=dtype,
    )  # fmt: skip
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs, ours, config


def draw(*shape, dtype, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@cases(name=list(SIZES), dtype=list(CLOSE), tokens=[1, 5, 70])
def test_outputs_and_gradients_are_equal(name, dtype, tokens):
    theirs, ours, config = pair(name, dtype)
    if config.n_groups > 1 and OLD:
        pytest.skip("transformers' own norm knows no groups")
    x, do = (draw(2, tokens, 32, dtype=dtype, seed=seed) for seed in (1, 2))
    found = []
    with in_float64("mamba2") if dtype == torch.float64 else torch.enable_grad():
        for layer in (theirs, ours):
            leaf = x.clone().requires_grad_()
            y = layer(leaf)
            y = y[0] if isinstance(y, tuple) else y
            names, parameters = zip(*sorted(layer.named_parameters()))
            found.append([y, *torch.autograd.grad((y * do).sum(), [leaf, *parameters])])
    for part, want, got in zip(["y", "dx", *names], *found):
        assert_close(got, want, rms=CLOSE[dtype], name=part)


@cases(name=["plain"], prompt=[1, 3, 40])
def test_cached_decoding_is_equal_and_so_are_the_states(name, prompt):
    theirs, ours, config = pair(name, torch.float32)
    x = draw(2, prompt + 6, 32, dtype=torch.float32)
    pieces = [x[:, :prompt], *x[:, prompt:].split(1, 1)]
    official, cache = DynamicCache(config=config), Cache()
    with torch.no_grad():
        want = torch.cat([theirs(part, cache_params=official) for part in pieces], 1)
        got = torch.cat([ours(part, past_key_values=cache, use_cache=True)[0] for part in pieces], 1)
        assert_close(got, want, rms=1e-5)
        assert_close(got, copy.deepcopy(ours)(x)[0], rms=1e-5)
    assert_close(cache[0]["recurrent_state"].transpose(2, 3), official.layers[0].recurrent_states[0], rms=1e-5)
    taps = official.layers[0].conv_states[0]
    assert_close(cache[0]["conv_state"][..., -taps.shape[2] :], taps, rms=1e-5)
