"""`generate`: greedy, drawn, ended, padded, continued."""

import warnings

import torch

from myfla.models.outputs import GenerateOutput
from myfla.models.sampling import Sampler
from myfla.testing import cases, raises
from small_models import KINDS, VOCABULARY, prompt, small_model


def greedy(model, ids, steps):
    """The definition: the likeliest token, the whole sequence read again each time."""
    with torch.no_grad():
        for _ in range(steps):
            ids = torch.cat([ids, model(ids, use_cache=False).logits[:, -1:].argmax(-1)], dim=1)
    return ids


@cases(kind=KINDS, use_cache=[True, False])
def test_greedy_takes_the_likeliest_token_each_time(kind, use_cache):
    model, ids = small_model(kind), prompt(3, 6)
    got = model.generate(ids, max_new_tokens=10, use_cache=use_cache)
    assert torch.equal(got, greedy(model, ids, 10)) and got.dtype == torch.int64
    assert len(got[:, 6:].unique()) > 3
    assert torch.equal(model.generate(ids, max_length=16), got) and model.generate(ids).shape == (3, 26)


@cases(kind=KINDS)
def test_each_token_is_read_once_and_one_row_of_logits_made(kind):
    model, ids, read, made = small_model(kind), prompt(2, 6), [], []
    model.model.register_forward_hook(lambda module, given, out: read.append(out.last_hidden_state.shape[1]))
    model.lm_head.register_forward_hook(lambda module, given, out: made.append(out.shape))
    model.generate(ids, max_new_tokens=4)
    assert read == [6, 1, 1, 1] and set(made) == {torch.Size([2, VOCABULARY])}
    assert not torch.is_inference_mode_enabled() and torch.is_grad_enabled()


@cases(kind=KINDS)
def test_steps_write_over_states_that_nobody_else_holds(kind):
    """A given cache keeps its tensors; one that `generate` made is decoded in place, and given back as any other."""
    model, ids, seen = small_model(kind), prompt(2, 6), []
    with torch.no_grad():
        given = model(ids[:, :5], use_cache=True).past_key_values
    held = [state["recurrent_state"] for state in given]
    kept = [state.clone() for state in held]
    model.model.register_forward_hook(
        lambda module, call, out: seen.append([state["recurrent_state"].data_ptr() for state in out.past_key_values]))
    want = model.generate(ids, max_new_tokens=5, past_key_values=given)
    assert all(torch.equal(state, before) for state, before in zip(held, kept)) and seen[-1] != seen[-2]
    seen.clear()
    made = model.generate(ids, max_new_tokens=5, return_dict_in_generate=True)
    assert seen[1] == seen[2] == seen[3] == seen[4] and torch.equal(made.sequences, want)
    assert not made.past_key_values.inplace


@cases(kind=KINDS, where=["left", "right", "inner"], use_cache=[True, False])
def test_padded_rows_continue_as_alone(kind, where, use_cache):
    model, alone, full = small_model(kind), prompt(1, 5, seed=8), prompt(1, 9, seed=9)
    places = {"left": [4, 5, 6, 7, 8], "right": [0, 1, 2, 3, 4], "inner": [0, 3, 4, 7, 8]}[where]
    ids, mask = torch.cat([full, torch.zeros(1, 9, dtype=torch.int64)]), torch.ones(2, 9, dtype=torch.int64)
    mask[1] = 0
    ids[1, places], mask[1, places] = alone[0], 1
    got = model.generate(ids, attention_mask=mask, max_new_tokens=7, use_cache=use_cache)
    assert torch.equal(got[0], greedy(model, full, 7)[0])
    assert torch.equal(got[1, 9:], greedy(model, alone, 7)[0, 5:]) and torch.equal(got[:, :9], ids)


@cases(kind=KINDS)
def test_the_padding_token_makes_the_mask(kind):
    model, alone = small_model(kind, pad_token_id=0), prompt(1, 5, seed=8)
    ids = torch.cat([torch.zeros(1, 3, dtype=torch.int64), alone], dim=1)
    assert torch.equal(model.generate(ids, max_new_tokens=4)[:, 8:], greedy(model, alone, 4)[:, 5:])
    told = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4)
    assert torch.equal(told, greedy(model, ids, 4))
    # A padding token that ends sequences too says nothing about the prompt.
    assert torch.equal(model.generate(ids, max_new_tokens=4, eos_token_id=0)[:, :9], greedy(model, ids, 1))


@cases(kind=KINDS, as_list=[True, False])
def test_rows_end_with_the_end_token_and_are_padded(kind, as_list):
    model, ids = small_model(kind), prompt(3, 6)
    whole = greedy(model, ids, 10)
    end = int(whole[0, 8])
    stops = [int((row[6:] == end).nonzero()[0]) if (row[6:] == end).any() else 9 for row in whole]
    got = model.generate(ids, max_new_tokens=10, eos_token_id=[end, VOCABULARY + 5] if as_list else end, pad_token_id=0)
    assert stops[0] <= 2 and got.shape[1] == 6 + max(stops) + 1
    for row, want, stop in zip(got, whole, stops):
        assert torch.equal(row[: 7 + stop], want[: 7 + stop]) and (row[7 + stop :] == 0).all()
    alone = model.generate(ids[:1], max_new_tokens=10, eos_token_id=end)
    assert alone.shape == (1, 7 + stops[0]) and int(alone[0, -1]) == end
    model.config.eos_token_id = end
    assert torch.equal(model.generate(ids[:1], max_new_tokens=10), alone)
    assert model.generate(ids[:1], max_new_tokens=10, eos_token_id=None).shape == (1, 16)
    model.generation_config = {"eos_token_id": int(whole[0, 6]), "max_new_tokens": 9}
    assert model.generate(ids[:1]).shape == (1, 7)
    padded = model.generate(ids, max_new_tokens=10, eos_token_id=end)
    assert all((row[7 + stop :] == end).all() for row, stop in zip(padded, stops))


def test_filters_keep_what_they_say():
    logits = torch.tensor([[1.0, 3.0, 2.0, 3.0, -1.0], [0.0, 0.0, 5.0, 4.0, 4.5]])
    kept = Sampler(True, top_k=2).filter(logits).isfinite()
    assert kept.tolist() == [[False, True, False, True, False], [False, False, True, False, True]]
    halved = Sampler(True, temperature=2.0).filter(logits)
    assert torch.equal(halved, logits / 2) and torch.equal(Sampler(False, temperature=2.0).filter(logits), logits)
    shares = logits.softmax(-1)
    for top_p in (1e-6, 0.3, 0.5, 0.8, 0.95, 1.0):
        kept = Sampler(True, top_p=top_p).filter(logits).isfinite()
        for row in range(2):
            order = shares[row].argsort(descending=True)
            count = int(kept[row].sum())
            assert kept[row][order[:count]].all() and count >= 1
            held = shares[row][order].cumsum(0)
            assert held[count - 1] >= top_p - 1e-6 and (count == 1 or held[count - 2] < top_p)
    assert Sampler(True, top_k=9).filter(logits).isfinite().all()


def test_draws_follow_the_filtered_distribution():
    logits = torch.tensor([[0.0, 1.0, 2.0, 3.0]]).expand(20000, 4)
    sampler = Sampler(True, temperature=1.5, top_k=3, generator=torch.Generator().manual_seed(0))
    drawn = sampler(sampler.filter(logits)).bincount(minlength=4).double() / 20000
    want = torch.tensor([-float("inf"), 1.0, 2.0, 3.0]).double().div(1.5).softmax(-1)
    assert (drawn - want).abs().max() < 0.02 and drawn[0] == 0


@cases(kind=KINDS)
def test_draws_are_repeated_by_their_seed(kind):
    model, ids = small_model(kind), prompt(2, 6)

    def run(seed, **kwargs):
        generator = torch.Generator().manual_seed(seed)
        return model.generate(ids, max_new_tokens=8, do_sample=True, generator=generator, **kwargs)

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))
    want = greedy(model, ids, 8)
    assert torch.equal(run(1, top_k=1), want) and torch.equal(run(1, top_p=1e-9), want)
    many = run(1, num_return_sequences=3)
    assert many.shape == (6, 14) and torch.equal(many[:3, :6], ids[:1].expand(3, 6)) and len(many.unique(dim=0)) == 6
    model.generation_config = {"do_sample": True, "top_k": 1}
    assert torch.equal(model.generate(ids, max_new_tokens=8), want)


@cases(kind=KINDS)
def test_a_cache_is_continued(kind):
    model, ids = small_model(kind), prompt(2, 6)
    first = model.generate(ids, max_new_tokens=5, return_dict_in_generate=True, output_scores=True)
    assert isinstance(first, GenerateOutput) and len(first.scores) == 5
    assert torch.equal(first.scores[2].argmax(-1), first.sequences[:, 8])
    cache = first.past_key_values
    assert cache.get_seq_length() == 10  # the last token has not been read yet
    longer = torch.cat([first.sequences, prompt(2, 2, seed=5)], dim=1)
    kept = cache.fork()
    got = model.generate(longer, max_new_tokens=4, past_key_values=cache)
    assert torch.equal(got, greedy(model, longer, 4)) and cache.get_seq_length() == 16
    assert torch.equal(model.generate(longer, max_new_tokens=4, past_key_values=kept), got)
    with raises(ValueError, "input_ids", "longer than the 16 tokens", "whole sequence"):
        model.generate(longer, past_key_values=cache)


def test_streamers_get_prompt_and_tokens():
    class Streamer:
        def __init__(self):
            self.seen, self.ended = [], False

        def put(self, tokens):
            self.seen.append(tokens)

        def end(self):
            self.ended = True

    model, ids, streamer = small_model("rwkv7"), prompt(1, 4), Streamer()
    got = model.generate(ids, max_new_tokens=3, streamer=streamer)
    assert streamer.ended and [list(part.shape) for part in streamer.seen] == [[1, 4], [1], [1], [1]]
    assert torch.equal(torch.cat([part.flatten() for part in streamer.seen]), got[0])


def test_wrong_calls_are_refused():
    model, ids = small_model("gated_deltanet"), prompt(2, 6)
    for wrong, words in (
        (dict(max_new_tokens=0), ("max_new_tokens", "from 1")),
        (dict(max_length=6), ("max_length", "from 7")),
        (dict(attention_mask=torch.ones(2, 5)), ("attention_mask", "[2, 6]", "[2, 5]")),
        (dict(attention_mask=torch.tensor([[0] * 6, [1] * 6])), ("attention_mask", "a token to read", "[0, 6]")),
        (dict(do_sample=True, temperature=0.0), ("temperature", "positive", "do_sample=False")),
        (dict(do_sample=True, temperature=float("nan")), ("temperature", "positive")),
        (dict(do_sample=True, top_k=-1), ("top_k", "from 0", "-1")),
        (dict(do_sample=True, top_k=1.5), ("top_k", "1.5")),
        (dict(do_sample=True, top_p=0), ("top_p", "above 0")),
        (dict(do_sample=True, top_p=1.5), ("top_p", "at most 1")),
        (dict(num_return_sequences=2), ("num_return_sequences", "do_sample=True")),
        (dict(num_return_sequences=0), ("num_return_sequences", "positive")),
        (dict(eos_token_id="</s>"), ("eos_token_id", "integer")),
    ):
        with raises(ValueError, "generate", *words):
            model.generate(ids, **wrong)
    for prompts in (ids[:, :0], ids[0], [1, 2]):
        with raises(ValueError, "generate", "input_ids", "[B, T]"):
            model.generate(prompts)
    with raises(TypeError, "max_new_token", "max_new_tokens"):
        model.generate(ids, max_new_token=3)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model.generate(ids, max_new_tokens=1, temperature=0.5, top_k=3)
    assert any("temperature, top_k has no effect without do_sample=True" in str(w.message) for w in seen)
