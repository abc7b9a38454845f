"""Every family of transformers that `use_myfla` serves computes with it what it computes without."""

import copy
import inspect
import re

import pytest
import torch

pytest.importorskip("transformers", minversion="5.15")

import transformers
from packaging.version import Version
from transformers import DataCollatorWithFlattening

from app_runs import ROOT
from hf_gradients import (
    CLOSE,
    SAME,
    assert_theirs_is_the_error,
    assert_true,
    in_theirs,
    in_truth,
    joined,
    logits_and_gradients,
)
from hf_small_models import CONFIGS, CONVOLUTIONS, OLD, build, in_float64, plain_transformers, tokens
from myfla.integrations.hf_models import model_files
from myfla.integrations.transformers import packed_kwargs, use_myfla
from myfla.testing import assert_close, cases, rms_error

FAMILIES = sorted(CONFIGS)
STEPPING = [family for family in FAMILIES if not (OLD and family == "falcon_h1")]
# The attention of the first two picks blocks of the row it stands in: packed sequences are no rows to it. Of the others
# transformers itself keeps the offsets: from the layers (mamba2 with a head, inkling) or from attention (granite).
PACKABLE = [family for family in FAMILIES if family not in (
    "qwen4_exp", "glm5_next", "mamba2", "inkling", "inkling2", "inkling2_loop", "granitemoehybrid",
    *(("falcon_h1", "nemotron_h") if OLD else ()))]
# Of these, transformers computes the same in pieces as in one: its one-token step of Mamba-2 leaves the limit of time
# steps out, which two of these set, and bamba counts positions anew in every piece.
SPLITTABLE = [family for family in FAMILIES if family not in ("glm5_next", "mamba2", "zamba2", "bamba")]



def test_every_family_of_the_tested_versions_is_in_the_table():
    (newest,) = re.findall(r"^transformers==([\d.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    if Version(transformers.__version__) > Version(newest):
        pytest.skip("a newer transformers may have more; use_myfla warns of them")
    assert sorted(model_files()) == FAMILIES


def cache_name(model):
    """What a model calls its cache: the first from 5.24 on."""
    known = inspect.signature(model.forward).parameters
    return next(name for name in ("cache", "cache_params", "past_key_values") if name in known)


@cases(family=[family for family in STEPPING if family in SPLITTABLE or family == "glm5_next"])
def test_a_cached_step_after_a_training_pass_equals_the_whole(family):
    model, ids = build(family).double().train(), tokens(2, 12)
    name = cache_name(model)
    with in_float64(family), use_myfla():
        first = model(ids[:, :10], use_cache=True)
        states = getattr(first, name)
        steps = [model(ids[:, t : t + 1], **{name: states, "use_cache": True}).logits for t in (10, 11)]
        got = torch.cat([first.logits, *steps], 1)
        want = model(ids, use_cache=False).logits
    assert_close(got.detach(), want.detach(), rms=SAME)


@cases(family=FAMILIES, length=[1, 5, 64, 130])
def test_logits_and_gradients_equal_transformers(family, length):
    if length == 1 and family not in STEPPING:
        pytest.skip("transformers' own gives two tokens")
    model, ids = build(family), tokens(2, length)
    theirs = in_theirs(family, model, ids)
    with use_myfla():
        ours = logits_and_gradients(model, ids)
    truth = assert_true(family, model, ours, ids)
    assert any("A_log" in name for name in truth[1]) or family in CONVOLUTIONS
    assert_close(ours[0], theirs[0], rms=CLOSE)
    assert_close(joined(ours[1]), joined(theirs[1]), rms=CLOSE, name="all gradients")
    assert_theirs_is_the_error(ours, theirs, truth)


@cases(family=FAMILIES)
def test_a_gpu_computes_the_same(family):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    model, ids = build(family).cuda(), tokens(2, 70).cuda()
    with use_myfla(devices=["cuda"]):
        assert_true(family, model, logits_and_gradients(model, ids), ids)
        got = model.generate(ids[:, :9], max_new_tokens=8, do_sample=False, pad_token_id=0)
    with plain_transformers(family):
        assert got.tolist() == model.generate(ids[:, :9], max_new_tokens=8, do_sample=False, pad_token_id=0).tolist()
        want = model(ids, use_cache=False).logits
        with use_myfla():  # which leaves CUDA tensors alone
            assert_close(model(ids, use_cache=False).logits, want, rms=1e-6)


@cases(family=[family for family in FAMILIES if not (OLD and family == "nemotron_h")], length=[5, 70])
def test_in_float64_nothing_differs(family, length):
    model, ids = build(family), tokens(2, length)
    with use_myfla(), in_float64(family):
        ours = logits_and_gradients(copy.deepcopy(model).double(), ids)
    truth = in_truth(family, model, ids)
    for got, want in [(ours[0], truth[0])] + [(ours[1][name], truth[1][name]) for name in truth[1]]:
        assert_close(got, want, rms=SAME)


@cases(family=FAMILIES)
def test_the_rule_and_the_convolution_matter_in_these_models(family):
    model, ids = build(family), tokens(1, 40)
    with torch.no_grad(), use_myfla():
        for part in (("conv",) if family in CONVOLUTIONS else ("A_log", "conv1d", "norm.weight")):
            before = model(ids).logits
            for name, weight in model.named_parameters():
                weight.add_(1.0 if part in name else 0.0)
            assert rms_error(model(ids).logits, before) > 100 * CLOSE, part


@cases(family=FAMILIES, side=["left", "right"])
def test_padded_batches_equal_transformers(family, side):
    model, ids = build(family), tokens(3, 40)
    mask = torch.ones_like(ids)
    for row, pads in enumerate((0, 7, 33)):
        cut = slice(0, pads) if side == "left" else slice(40 - pads, 40)
        mask[row, cut] = 0
        ids[row, cut] = 0
    with use_myfla():
        ours = logits_and_gradients(model, ids, attention_mask=mask)
    assert_true(family, model, ours, ids, attention_mask=mask)


@cases(family=STEPPING, how=[("whole", 1), ("left padded", 1), ("left padded", 3)])
def test_generated_tokens_equal_transformers(family, how):
    prompts, beams = how
    model, ids = build(family), tokens(2, 9)
    mask = torch.ones_like(ids)
    if prompts == "left padded":
        mask[0, :4] = 0
        ids[0, :4] = 0
    options = dict(attention_mask=mask, max_new_tokens=16, do_sample=False, num_beams=beams, pad_token_id=0)
    with plain_transformers(family):
        want = model.generate(ids, **options)
    with use_myfla():
        got = model.generate(ids, **options)
    assert got.shape == (2, 25)
    assert got.tolist() == want.tolist()


@cases(family=STEPPING, cuts=[(2, 3, 70), (64, 65, 66, 72), (70, 71), (71, 72)])
def test_any_split_through_the_cache_equals_transformers_and_the_whole(family, cuts):
    model, ids = build(family), tokens(2, 73)
    name = cache_name(model)

    def in_pieces():
        cache, pieces = None, []
        for start, end in zip((0, *cuts), (*cuts, 73)):
            out = model(ids[:, start:end], **{name: cache}, use_cache=True)
            cache, pieces = getattr(out, name), [*pieces, out.logits]
        return torch.cat(pieces, 1)

    with torch.no_grad():
        with plain_transformers(family):
            want = in_pieces()
        with use_myfla():
            assert_close(in_pieces(), want, rms=CLOSE, name="transformers in the same pieces")
            if family in SPLITTABLE:
                assert_close(in_pieces(), model(ids).logits, rms=CLOSE, name="in one piece")


@cases(family=PACKABLE)
def test_packed_sequences_equal_the_same_sequences_alone(family):
    model, ids = build(family), tokens(1, 100)
    lengths = [30, 1, 2, 67]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    with use_myfla():
        packed = logits_and_gradients(model, ids, **packed_kwargs(positions))
    assert_true(family, model, packed, ids, pieces=lengths)


def test_packed_sequences_of_mamba2_without_a_head_equal_the_same_sequences_alone():
    """The model with a head does not hand the offsets down; and two rows are as good as one."""
    if OLD:
        pytest.skip("transformers does not hand the offsets down")
    model, ids = build("mamba2").backbone, tokens(2, 50)
    lengths = [[20, 3, 27], [49, 1]]
    numbers = torch.tensor([[n for n, length in enumerate(row) for _ in range(length)] for row in lengths])
    with torch.no_grad(), use_myfla():
        got = model(ids, seq_idx=numbers, use_cache=False)[0]
        for row, cuts in enumerate(lengths):
            alone = [model(part[None], use_cache=False)[0] for part in ids[row].split(cuts)]
            assert_close(got[row : row + 1], torch.cat(alone, 1), rms=CLOSE)


@cases(family=PACKABLE)
def test_packed_batches_of_the_flattening_collator_train(family):
    model, ids = build(family), tokens(1, 50)
    collate = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)
    batch = collate([{"input_ids": piece[0].tolist()} for piece in ids.split([20, 3, 27], 1)])
    with use_myfla():
        loss = model(**batch, use_cache=False).loss
        want = model(ids, **packed_kwargs(batch["position_ids"])).logits
    labels = batch["labels"][0, 1:]
    assert_close(loss, torch.nn.functional.cross_entropy(want[0, :-1], labels), rms=CLOSE)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_batches_that_the_collator_gives_positions_only_are_mixed_by_transformers_and_here_alike():
    """The case that the documents warn about."""
    model, ids = build("qwen3_next"), tokens(2, 15)
    batch = DataCollatorWithFlattening(return_tensors="pt")([{"input_ids": row.tolist()} for row in ids])
    given = {name: batch[name] for name in ("input_ids", "position_ids")}
    with torch.no_grad(), plain_transformers("qwen3_next"):
        theirs, alone = model(**given, use_cache=False).logits, model(ids, use_cache=False).logits.flatten(0, 1)[None]
    with torch.no_grad(), use_myfla():
        ours = model(**given, use_cache=False).logits
    assert_close(ours, theirs, rms=CLOSE)
    assert_close(ours[:, :15], alone[:, :15], rms=CLOSE)
    assert rms_error(ours[:, 15:], alone[:, 15:]) > 0.1


@cases(only=["cu_seq_lens_q", "seq_idx"])
def test_offsets_or_sequence_numbers_alone_are_enough(only):
    model, ids = build("qwen3_next"), tokens(1, 50)
    told = packed_kwargs(torch.cat([torch.arange(20), torch.arange(30)])[None])
    with torch.no_grad(), use_myfla():
        want = model(ids, **told).logits
        got = model(ids, position_ids=told["position_ids"], use_cache=False, **{only: told[only]}).logits
    assert_close(got, want, rms=1e-6)


@cases(family=["qwen3_next", "olmo_hybrid", "mamba2", "falcon_h1", "lfm2"])
def test_half_precision_stays_as_close_as_transformers(family):
    model, ids = build(family), tokens(2, 70)
    with torch.no_grad():
        with use_myfla():
            truth = model(ids).logits
            got = model.bfloat16()(ids).logits
        with plain_transformers(family):
            theirs = model(ids).logits
    assert got.dtype == theirs.dtype
    assert rms_error(got, truth) < 1.3 * rms_error(theirs, truth)


@cases(family=["qwen3_next", "olmo_hybrid", "mamba2", "falcon_h1", "lfm2"])
def test_gradient_checkpointing_changes_nothing(family):
    model, ids = build(family).train(), tokens(2, 40)
    with use_myfla():
        want = logits_and_gradients(model, ids)
        model.gradient_checkpointing_enable()
        got = logits_and_gradients(model, ids)
    for name in want[1]:
        assert_close(got[1][name], want[1][name], rms=1e-6, name=name)


@pytest.mark.slow
@cases(family=["qwen3_5", "olmo_hybrid", "mamba2", "bamba"])
def test_compiled_models_have_no_graph_break_and_equal_themselves(family):
    model, ids = build(family), tokens(1, 70)
    torch._dynamo.reset()
    with torch.no_grad(), use_myfla():
        want = model(ids, use_cache=False).logits
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        assert_close(compiled(ids, use_cache=False).logits, want, rms=1e-6)


@pytest.mark.slow
@cases(family=["qwen3_5", "olmo_hybrid", "mamba2", "bamba"])
def test_exported_models_equal_themselves(family):
    model, ids = build(family), tokens(1, 70)
    with torch.no_grad(), use_myfla():
        want = model(ids, use_cache=False).logits
        exported = torch.export.export(model, (), {"input_ids": ids, "use_cache": False}, strict=False)
        assert_close(exported.module()(input_ids=ids, use_cache=False).logits, want, rms=1e-6)
