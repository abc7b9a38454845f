"""The models: forward pass, cache, padding, packing, outputs."""

import warnings

import torch

from myfla.models import Cache
from myfla.models.outputs import CausalLMOutputWithPast
from myfla.testing import assert_close, cases, raises
from myfla.utils.errors import CacheError
from small_models import KINDS, VOCABULARY, prompt, small_model

TIGHT = 2e-5


def logits_of(model, ids, **kwargs):
    with torch.no_grad():
        return model(ids, **kwargs).logits


# ---- forward pass ---------------------------------------------------------------------------------------------------


@cases(kind=KINDS)
def test_float32_equals_float64(kind):
    ids = prompt(2, 70)
    got, want = (logits_of(small_model(kind, dtype=d), ids) for d in (torch.float32, torch.float64))
    assert want.dtype == torch.float64 and want.abs().max() > 1
    assert_close(got, want, rms=2e-5, largest=2e-4)


@cases(kind=KINDS)
def test_embeddings_in_place_of_ids_give_the_same(kind):
    model, ids = small_model(kind), prompt()
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(logits_of(model, None, inputs_embeds=embeds), logits_of(model, ids))


@cases(kind=KINDS, cuts=[[1, 1, 1, 1, 1, 1, 1, 1, 1], [4, 5], [0, 8, 1], [66, 1, 3]])
def test_any_split_equals_whole(kind, cuts):
    model, ids = small_model(kind), prompt(2, sum(cuts))
    cache, parts = Cache(), []
    with torch.no_grad():
        for part in ids.split(cuts, dim=1):
            out = model(part, past_key_values=cache, use_cache=True)
            assert out.past_key_values is cache
            parts.append(out.logits)
    assert cache.get_seq_length() == sum(cuts) and len(cache) == 2
    assert_close(torch.cat(parts, dim=1), logits_of(model, ids), rms=TIGHT)


@cases(kind=KINDS)
def test_a_cache_is_kept_in_evaluation_only_and_read_only_without_use_cache(kind):
    model, ids = small_model(kind), prompt()
    assert isinstance(model(ids).past_key_values, Cache) and model(ids, use_cache=False).past_key_values is None
    assert model.train()(ids).past_key_values is None
    cache = model.eval()(ids).past_key_values
    before = [state["recurrent_state"].clone() for state in cache]
    first = logits_of(model, ids[:, :3], past_key_values=cache, use_cache=False)
    again = logits_of(model, ids[:, :3], past_key_values=cache, use_cache=False)
    assert torch.equal(first, again) and cache.get_seq_length() == ids.shape[1]
    assert all(torch.equal(old, new["recurrent_state"]) for old, new in zip(before, cache))
    assert not torch.allclose(first, logits_of(model, ids[:, :3]), atol=1e-3)


@cases(kind=KINDS)
def test_legacy_caches_are_taken(kind):
    model, ids = small_model(kind), prompt()
    legacy = model(ids[:, :4]).past_key_values.to_legacy_cache()
    got = logits_of(model, ids[:, 4:], past_key_values=legacy, use_cache=True)
    assert_close(got, logits_of(model, ids)[:, 4:], rms=TIGHT)


@cases(kind=KINDS, where=["left", "right", "inner"])
def test_pads_change_nothing(kind, where):
    model, alone = small_model(kind), prompt(1, 7, seed=3)
    places = {"left": range(4, 11), "right": range(7), "inner": [0, 1, 4, 5, 6, 9, 10]}[where]
    ids, mask = prompt(2, 11), torch.ones(2, 11, dtype=torch.int64)
    mask[1] = 0
    for place, token in zip(places, alone[0]):
        ids[1, place], mask[1, place] = token, 1
    with torch.no_grad():
        out = model(ids, attention_mask=mask, use_cache=True)
        more = model(ids[:, :3], past_key_values=out.past_key_values, use_cache=True).logits
        want = model(alone, use_cache=True)
        want_more = model(ids[1:, :3], past_key_values=want.past_key_values, use_cache=True).logits
    assert_close(out.logits[1][list(places)], want.logits[0], rms=TIGHT)
    assert_close(more[1], want_more[0], rms=TIGHT)
    assert out.past_key_values.lengths.tolist() == [14, 10]
    changed = torch.where(mask.bool(), ids, torch.full_like(ids, 5))
    assert torch.equal(logits_of(model, changed, attention_mask=mask)[mask.bool()], out.logits[mask.bool()])


@cases(kind=KINDS, grad=[True, False])
def test_padded_prompts_are_read_in_parts(kind, grad):
    """As generation loops do it: each part comes with the mask of everything so far."""
    model, ids, starts = small_model(kind), prompt(3, 24), [0, 5, 12]
    mask = (torch.arange(24) >= torch.tensor(starts).unsqueeze(1)).long()
    cache, parts, begin = None, [], 0
    with torch.set_grad_enabled(grad):
        for end in (9, 18, 19, 20, 24):
            out = model(ids[:, begin:end], attention_mask=mask[:, :end], past_key_values=cache, use_cache=True)
            cache, begin = out.past_key_values, end
            parts.append(out.logits)
        got = torch.cat(parts, dim=1)
        for row, start in enumerate(starts):
            assert_close(got[row, start:], model(ids[row : row + 1, start:]).logits[0], rms=TIGHT)
    assert cache.get_seq_length() == 24 and cache.lengths.tolist() == [24, 19, 12]


@cases(kind=KINDS)
def test_packed_sequences_equal_separate_ones(kind):
    model, lengths = small_model(kind), [5, 1, 0, 8]
    rows = [prompt(1, n, seed=n) for n in lengths]
    offsets = torch.tensor([0, 5, 6, 6, 14])
    got = logits_of(model, torch.cat(rows, dim=1), cu_seqlens=offsets)
    want = torch.cat([logits_of(model, row) for row in rows], dim=1)
    assert_close(got, want, rms=TIGHT)


@cases(kind=KINDS)
def test_hidden_states_are_those_of_the_blocks(kind):
    model, ids = small_model(kind), prompt()
    out = model.model(ids, output_hidden_states=True)
    assert len(out.hidden_states) == 3 and out.hidden_states[-1] is out.last_hidden_state
    assert torch.equal(out.hidden_states[0], model.model.embeddings(ids))
    assert torch.equal(model(ids, output_hidden_states=True).hidden_states[1], out.hidden_states[1])
    assert torch.equal(model.lm_head(out.last_hidden_state), model(ids).logits)


@cases(kind=KINDS, keep=[0, None, 1, 3, "index"])
def test_only_kept_logits_are_computed(kind, keep):
    model, ids = small_model(kind), prompt()
    rows = []
    model.lm_head.register_forward_hook(lambda module, given, out: rows.append(out.shape[1]))
    whole = logits_of(model, ids)
    index = torch.tensor([2, 5]) if keep == "index" else keep
    want = whole[:, index] if keep == "index" else whole[:, -keep:] if keep else whole
    assert_close(logits_of(model, ids, logits_to_keep=index), want, rms=1e-6)
    assert rows == [9, want.shape[1]]


@cases(kind=KINDS)
def test_checkpointed_blocks_give_the_same_gradients(kind):
    ids, grads = prompt(), []
    for on in (False, True):
        model = small_model(kind).train()
        if on:
            model.gradient_checkpointing_enable()
        runs = []
        model.model.layers[0].attn.register_forward_hook(lambda *given, runs=runs: runs.append(1))
        model(ids, labels=ids).loss.backward()
        assert len(runs) == (2 if on else 1)
        grads.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads))
    with raises(ValueError, "use_cache", "gradient checkpointing", "gradient_checkpointing_disable()"):
        model(ids, use_cache=True)
    model.gradient_checkpointing_disable()
    assert model(ids, use_cache=True).past_key_values is not None


@cases(kind=KINDS)
def test_every_parameter_gets_a_gradient(kind):
    model, ids = small_model(kind).train(), prompt()
    model(ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


# ---- outputs --------------------------------------------------------------------------------------------------------


@cases(kind=KINDS)
def test_outputs_are_read_by_attribute_name_and_place(kind):
    model, ids = small_model(kind), prompt()
    out = model(ids, labels=ids)
    assert out[0] is out.loss and out["logits"] is out[1] is out.logits and list(out) == [
        "loss", "logits", "past_key_values"]
    assert out.hidden_states is None and len(out) == 3 and "attentions" not in out and out[:2] == (out.loss, out.logits)
    with raises(KeyError, "hidden_states", "logits"):
        out["hidden_states"]
    as_tuple = model(ids, labels=ids, return_dict=False)
    assert isinstance(as_tuple, tuple) and len(as_tuple) == 3 and torch.equal(as_tuple[1], out.logits)
    model.config.return_dict = False
    assert isinstance(model(ids), tuple) and isinstance(model.model(ids), tuple)
    assert CausalLMOutputWithPast() != CausalLMOutputWithPast()


def test_tensors_are_found_in_outputs():
    from torch.utils._pytree import tree_flatten, tree_unflatten

    out = CausalLMOutputWithPast(logits=torch.ones(2), hidden_states=(torch.zeros(1), torch.ones(1)))
    leaves, spec = tree_flatten(out)
    again = tree_unflatten([leaf + 1 for leaf in leaves], spec)
    assert len(leaves) == 3 and isinstance(again, CausalLMOutputWithPast) and again.loss is None
    assert again.logits.tolist() == [2, 2] and [t.item() for t in again.hidden_states] == [1, 2]


# ---- errors ---------------------------------------------------------------------------------------------------------


@cases(kind=KINDS)
def test_wrong_calls_are_refused(kind):
    model, ids = small_model(kind), prompt()
    with raises(ValueError, "input_ids", "neither"):
        model()
    with raises(ValueError, "input_ids", "both"):
        model(ids, inputs_embeds=torch.zeros(2, 9, 32))
    with raises(ValueError, "input_ids", "integers [B, T]", "[9]"):
        model(ids[0])
    with raises(ValueError, "input_ids", "integers", "float32"):
        model(ids.float())
    with raises(ValueError, "input_ids", "from 0 to 60", "61", "tokenizer"):
        model(ids.clone().fill_(VOCABULARY))
    with raises(TypeError, "forward", "atention_mask", "attention_mask"):
        model(ids, atention_mask=None)
    with raises(TypeError, "forward", "logit_to_keep", "logits_to_keep"):
        model(ids, logit_to_keep=1)
    with raises(ValueError, "logits_to_keep", "-1"):
        model(ids, logits_to_keep=-1)
    with raises(ValueError, "labels", "[2, 9]", "[2, 8]"):
        model(ids, labels=ids[:, 1:])
    with raises(ValueError, "shift_labels", "integers"):
        model(ids, shift_labels=ids.float())
    with raises(ValueError, "labels", "from 0 to 60", "-100", "99"):
        model(ids, labels=ids.clone().fill_(99))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model(ids, output_attentions=True)
    assert any("output_attentions is ignored" in str(w.message) for w in seen)


@cases(kind=KINDS)
def test_foreign_caches_are_refused(kind):
    model, ids = small_model(kind), prompt()
    other = small_model(KINDS[KINDS.index(kind) - 1])
    with raises(CacheError, "past_key_values", "must be of this model", kind, other.config.model_type):
        model(ids, past_key_values=other(ids).past_key_values)
    deeper = Cache()
    for i in range(3):
        deeper.update(recurrent_state=torch.zeros(2, 4, 8, 16), layer_idx=i)
    with raises(CacheError, "at most 2 layers", "3"):
        model(ids, past_key_values=deeper)
    with raises(CacheError, "must be a Cache", "int"):
        model(ids, past_key_values=7)
    with raises(ValueError, "config", kind, "dict"):
        type(model)({"hidden_size": 4})
    with raises(ValueError, "config", kind, other.config.model_type):
        type(model)(other.config)
