"""Attention residuals, alone and in a model."""

import torch

from myfla.models import GatedDeltaNetConfig, GatedDeltaNetModel
from myfla.models.attnres import attnres
from myfla.testing import assert_close, cases, raises
from small_models import prompt, small_config, small_model


def test_attention_residuals_are_a_softmax_over_depth():
    query, weight, out_weight = torch.randn(1, 6), torch.randn(6), torch.randn(6)
    sources = [torch.randn(2, 3, 6) for _ in range(4)]
    stacked = torch.stack(sources, dim=-2).double()
    keys = stacked / (stacked.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight
    shares = (keys @ query[0].double()).softmax(-1)
    mixed = (shares.unsqueeze(-1) * stacked).sum(-2)
    assert_close(attnres(query, sources, weight, rms_eps=1e-5), mixed, rms=1e-6)
    normed = mixed / (mixed.square().mean(-1, keepdim=True) + 1e-5).sqrt() * out_weight
    assert_close(attnres(query, sources, weight, out_weight, rms_eps=1e-5), normed, rms=1e-6)


@cases(size=[1, 2, 4])
def test_models_with_attention_residuals_mix_where_the_blocks_end(size):
    model, ids = small_model("gated_deltanet", num_hidden_layers=3, attnres_block_size=size), prompt()
    inner, hidden = model.model, model.get_input_embeddings()(ids)
    sources, total = [hidden], None
    for half in range(6):  # independent of the blocks: one loop over halves, sums begun anew at each boundary
        layer = inner.layers[half // 2]
        mix, norm, part = (
            (layer.attn_res_proj, layer.attn_res_norm, layer.attn) if half % 2 == 0 else
            (layer.mlp_res_proj, layer.mlp_res_norm, layer.mlp))  # fmt: skip
        out_norm = layer.attn_norm if half % 2 == 0 else layer.mlp_norm
        given = sources + ([] if total is None else [total])
        mixed = out_norm(hidden) if half == 0 else attnres(mix.weight, given, norm.weight, out_norm.weight, norm.eps)
        if half % size == 0 and half:
            sources, total = given, None
        step = part(mixed)
        step = step[0] if isinstance(step, tuple) else step
        total = step if total is None else total + step
    want = attnres(inner.res_proj.weight, [*sources, total], inner.res_norm.weight, inner.norm.weight, 1e-6)
    assert_close(inner(ids, use_cache=False).last_hidden_state, want, rms=1e-6)
    names = set(model.state_dict())
    assert {"model.res_proj.weight", "model.res_norm.weight", "model.layers.2.mlp_res_proj.weight"} <= names
    fresh = GatedDeltaNetModel(small_config("gated_deltanet", attnres_block_size=size))
    assert fresh.res_proj.weight.abs().max() == 0 and fresh.layers[1].attn_res_norm.weight.min() == 1


@cases(size=[0, 3, -2, 1.5, True])
def test_other_block_sizes_are_refused(size):
    with raises(ValueError, "attnres_block_size", "even"):
        GatedDeltaNetConfig(attnres_block_size=size)
