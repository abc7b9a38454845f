"""Details of models, configs and caches that callers of fla 0.6.0 rely on."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from myfla import models
from myfla.models.attention_state import update_attention_cache
from myfla.models.configuration_utils import (
    get_attention_spec,
    parse_attention_config,
    validate_attnres_config,
    validate_loss_config,
)
from myfla.models.utils import Cache
from myfla.testing import assert_close, cases, raises
from small_models import KINDS, prompt, small_config, small_model

SPEC = {"layers": [1], "num_heads": 4}
WHOLE = {**SPEC, "num_kv_heads": 4, "qkv_bias": False, "window_size": None, "rope_theta": 10000.0}


def hf_config(kind):
    pytest.importorskip("transformers", minversion="5.6.2")
    from myfla.models import hf

    return {"gated_deltanet": hf.GatedDeltaNetConfig, "rwkv7": hf.RWKV7Config}[kind](**small_config(kind).to_dict())


@cases(make=["ours", "transformers"])
def test_attn_is_completed_whenever_it_is_set(make, tmp_path):
    config = small_config("gated_deltanet") if make == "ours" else hf_config("gated_deltanet")
    assert config.attn is None
    config.attn = dict(SPEC)
    assert config.attn == WHOLE and config.to_dict()["attn"] == WHOLE
    with raises(ValueError, "GatedDeltaNetConfig: attn.layers must be numbers of layers from 0 to 1"):
        config.attn = {"layers": [2], "num_heads": 4}
    assert config.attn == WHOLE
    config.save_pretrained(tmp_path)
    assert json.loads(Path(tmp_path, "config.json").read_text())["attn"] == WHOLE
    again = type(config).from_pretrained(tmp_path, attn={"layers": [0], "num_heads": 2})
    assert again.attn == {**WHOLE, "layers": [0], "num_heads": 2, "num_kv_heads": 2}
    config.attn = None
    assert config.attn is None
    fresh = small_config("gated_deltanet")
    fresh.attn = dict(SPEC)
    assert type(models.GatedDeltaNetModel(fresh).layers[1].attn).__name__ == "Attention"


@cases(make=["ours", "transformers"])
def test_a_hybrid_rwkv7_is_refused_whenever_it_is_asked_for(make):
    config = small_config("rwkv7") if make == "ours" else hf_config("rwkv7")
    with raises(ValueError, "RWKV7Config: attn must be None"):
        config.attn = dict(SPEC)
    assert config.attn is None


def test_the_checks_of_configs_are_called_as_officially():
    assert parse_attention_config(SPEC, num_hidden_layers=2) == WHOLE and "num_kv_heads" not in SPEC
    assert get_attention_spec(WHOLE, layer_idx=1) is WHOLE and get_attention_spec(WHOLE, layer_idx=0) is None
    validate_attnres_config(None)
    validate_attnres_config(attnres_block_size=4)
    validate_loss_config(fuse_cross_entropy=True, fuse_linear_cross_entropy=False)
    with raises(ValueError, "config: attnres_block_size must be None, 1 or an even number"):
        validate_attnres_config(3)
    with raises(ValueError, "config: fuse_linear_cross_entropy excludes fuse_cross_entropy"):
        validate_loss_config(fuse_cross_entropy=True, fuse_linear_cross_entropy=True)
    with raises(ValueError, "config: attn.layers must be numbers of layers"):
        parse_attention_config(SPEC, num_hidden_layers=1)


@cases(kind=KINDS)
def test_arguments_by_place_are_the_official_ones(kind):
    model, ids = small_model(kind), prompt()
    moved = torch.nn.functional.pad(ids[:, 1:], (0, 1), value=-100)
    want = model(ids, labels=ids, use_cache=True, output_hidden_states=True)
    labels = (ids, None) if kind == "rwkv7" else (ids,)  # the official RWKV-7 has shift_labels there
    got = model(ids, None, None, None, *labels, True, None, True, True)
    assert torch.equal(got.loss, want.loss) and got.past_key_values is not None and len(got.hidden_states) == 3
    assert torch.equal(model(ids, shift_labels=moved).loss, want.loss)
    if kind == "rwkv7":
        assert torch.equal(model(ids, None, None, None, None, moved).loss, want.loss)
    assert len(model(ids, None, None, None, *([None] * len(labels)), False, None, None, False)) == 1
    packed, cu = ids.view(1, -1), torch.tensor([0, ids.shape[1], ids.numel()])
    base = model.model(packed, None, None, None, False, None, None, True, cu).last_hidden_state
    assert torch.equal(base, model.model(packed, use_cache=False, cu_seqlens=cu).last_hidden_state)


@cases(kind=KINDS)
def test_the_old_name_of_logits_to_keep(kind):
    model, ids = small_model(kind), prompt()
    with pytest.warns(FutureWarning, match="num_logits_to_keep is now logits_to_keep"):
        got = model(ids, num_logits_to_keep=2).logits
    assert torch.equal(got, model(ids, logits_to_keep=2).logits) and got.shape[1] == 2


class Both(nn.Module):
    """A criterion of either form, that counts its calls."""

    ignore_index, reduction = -1, "mean"

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x, labels, weight=None, bias=None):
        self.calls.append((tuple(x.shape), tuple(labels.shape), self.reduction))
        logits = x if weight is None else nn.functional.linear(x, weight, bias)
        return 3 * nn.functional.cross_entropy(logits.reshape(labels.numel(), -1), labels.reshape(-1),
                                               ignore_index=self.ignore_index, reduction=self.reduction)


@pytest.mark.filterwarnings("ignore:.*fuse_linear_cross_entropy")
@cases(kind=KINDS, fused=[False, True], items=[None, 5])
def test_a_criterion_of_ones_own_is_the_loss(kind, fused, items):
    model, ids = small_model(kind, fuse_linear_cross_entropy=fused, fuse_cross_entropy=not fused), prompt(2, 9)
    want = model(ids, labels=ids, num_items_in_batch=items)
    names = set(model.state_dict())
    model.criterion = criterion = Both()
    got = model(ids, labels=ids, num_items_in_batch=items)
    assert_close(got.loss, 3 * want.loss, rms=1e-6)
    shape = ((2, 9, 32), (2, 9)) if fused else ((18, model.vocab_size), (18,))
    assert criterion.calls == [(*shape, "mean")] if items is None else criterion.reduction == "mean"
    assert (got.logits is None) == fused and set(model.state_dict()) == names
    marked = ids.masked_fill(ids == ids[0, 3], -1)
    assert torch.isfinite(model(ids, labels=marked).loss)
    model.criterion = nn.Identity() if items else None
    if items:
        with raises(ValueError, "criterion must have a reduction to be divided by num_items_in_batch", "Identity"):
            model(ids, labels=ids, num_items_in_batch=items)
    else:
        assert torch.equal(model(ids, labels=ids).loss, want.loss)


@cases(kind=KINDS, use_cache=[True, False], pads=[False, True])
def test_generation_reads_embeddings_in_place_of_ids(kind, use_cache, pads):
    model, ids = small_model(kind), prompt(3, 6)
    mask = torch.ones_like(ids)
    if pads:
        mask[0, :2] = 0
    given = dict(attention_mask=mask, max_new_tokens=5, use_cache=use_cache)
    want = model.generate(ids, **given)
    embeds = model.get_input_embeddings()(ids).detach()
    assert torch.equal(model.generate(inputs_embeds=embeds, **given), want[:, 6:])
    assert torch.equal(model.generate(ids, inputs_embeds=embeds, **given), want)
    torch.manual_seed(0)
    drawn = model.generate(ids, **given, do_sample=True, num_return_sequences=2)
    torch.manual_seed(0)
    again = model.generate(inputs_embeds=embeds, **given, do_sample=True, num_return_sequences=2)
    assert torch.equal(again, drawn[:, 6:])
    del given["max_new_tokens"]
    assert torch.equal(model.generate(inputs_embeds=embeds, **given, max_length=11), want[:, 6:])


def test_other_embeddings_lead_elsewhere_and_wrong_ones_are_named():
    model, ids = small_model("gated_deltanet"), prompt(2, 6)
    embeds = model.get_input_embeddings()(ids).detach()
    one, other = (model.generate(inputs_embeds=x, max_new_tokens=8) for x in (embeds, embeds.flip(0)))
    assert torch.equal(one, other.flip(0)) and not torch.equal(one, other)
    with raises(ValueError, "generate: inputs_embeds must be [B, T, hidden_size]", "[2, 6]"):
        model.generate(inputs_embeds=embeds[..., 0])
    with raises(ValueError, "generate: input_ids must have the shape [2, 6]", "[2, 5]"):
        model.generate(ids[:, 1:], inputs_embeds=embeds)
    with raises(ValueError, "generate: input_ids must be integers [B, T]", "NoneType"):
        model.generate()


@cases(window=[None, 4, 6, 20], old=[0, 3, 6], new=[1, 5, 9])
def test_keys_and_values_are_joined_and_cut_to_the_window(window, old, new):
    cached, given = [torch.randn(2, old, 3) for _ in "kv"], [torch.randn(2, new, 3) for _ in "kv"]
    before = [x.clone() for x in cached]
    for got, a, b in zip(update_attention_cache(cached, given, window), cached, given):
        assert torch.equal(got, torch.cat([a, b], 1)[:, -window if window else 0 :])
    assert all(map(torch.equal, cached, before))


def test_a_cache_tells_of_sliding_layers_and_can_put_states_away():
    cache, keys = Cache(), (torch.zeros(1, 3, 4), torch.zeros(1, 3, 4))
    cache.update(recurrent_state=torch.ones(1, 2, 3, 3), layer_idx=0)
    cache.update(attn_state=keys, layer_idx=1, cache_kwargs={"window_size": 2})
    assert cache.is_sliding == [False, True] and Cache().is_sliding == []
    away = cache.to("meta")  # stands for another device than the CPU here
    seen = []
    for layer in away.layers:
        layer._move = lambda device, layer=layer: seen.append((away.layers.index(layer), str(device)))
    away.offload(0)
    away.offload(1)
    away.offload(1, only_non_sliding=False)
    away.prefetch(0)
    away.prefetch(1)
    away.prefetch(1, only_non_sliding=False)
    away.prefetch(7)
    assert seen == [(0, "cpu"), (1, "cpu"), (0, "meta"), (1, "meta")]
    state = cache[0]["recurrent_state"]
    cache.offload(0)
    cache.prefetch(0)
    assert torch.equal(cache[0]["recurrent_state"], state) and cache.get_seq_length() == 1


def test_the_package_shows_layers_and_models():
    import myfla
    from myfla import GatedDeltaNet, RWKV7ForCausalLM

    assert GatedDeltaNet.__module__ == "myfla.layers.gated_deltanet" and RWKV7ForCausalLM is models.RWKV7ForCausalLM
    assert {"GatedDeltaNet", "RWKV7Model", "Cache"} <= set(dir(myfla))
    with raises(AttributeError, "module 'myfla' has no attribute 'GatedDeltaNett'"):
        getattr(myfla, "GatedDeltaNett")
