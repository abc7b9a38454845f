"""Every family of transformers with a gated delta rule computes with `use_myfla` what it computes without."""

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
from hf_small_models import CONFIGS, build, in_float64, plain_transformers, tokens
from myfla.integrations.hf_models import model_files
from myfla.integrations.transformers import packed_kwargs, use_myfla
from myfla.testing import assert_close, cases, rms_error

FAMILIES = sorted(CONFIGS)
# The attention of these two picks blocks of the row it stands in: packed sequences are no rows to it.
PACKABLE = [family for family in FAMILIES if family not in ("qwen4_exp", "glm5_next")]
# Of these, transformers computes the same in pieces as in one.
SPLITTABLE = [family for family in FAMILIES if family != "glm5_next"]
CLOSE = 1e-5
SAME = 1e-11  # in float64
NOTHING = 1e-14  # of all gradients together: rounding, in float64
# Of transformers' own mixing of residual streams, in float32 on both sides: differences of nearly equal numbers.
STREAMS, CLOSE_STREAMS = ("_hc.scale", "_hc.base"), 5e-5
DECAYS = ("A_log", "dt_bias")  # sums over all tokens whose terms cancel


def project(logits):
    """A number whose gradient reaches everything."""
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5)).to(logits)
    return (logits * weights).sum()


def logits_and_gradients(model, ids, **kwargs):
    """Logits, and by name the gradients of a random projection of them."""
    return gradients_of(model, lambda: model(ids, **{"use_cache": False, **kwargs}).logits)


def gradients_of(model, compute):
    model.zero_grad()
    logits = compute()
    project(logits).backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def in_truth(family, model, ids, pieces=None, **kwargs):
    """The same of transformers' own code, in float64."""
    with in_float64(family):
        return in_theirs(family, copy.deepcopy(model).double(), ids, pieces, **kwargs)


def in_theirs(family, model, ids, pieces=None, **kwargs):
    """The same of transformers' own code; ``pieces``: lengths into which the row is cut, each is computed alone."""

    def compute():
        parts = ids.split(pieces, 1) if pieces else [ids]
        return torch.cat([model(part, **{"use_cache": False, **kwargs}).logits for part in parts], 1)

    with plain_transformers(family):
        return gradients_of(model, compute)


def assert_true(family, model, ours, ids, **kwargs):
    """Logits and every single gradient are within the bound of the truth, which is returned.

    Beyond it may only be decays, where transformers' own float32 misses by twice as much. A gradient that is
    nothing but rounding in float64 (of the queries of attention to one token) has no digits: it is small beside all.
    """
    truth = in_truth(family, model, ids, **kwargs)
    assert truth[0].dtype == torch.float64 and sorted(ours[1]) == sorted(truth[1])
    assert_close(ours[0].double(), truth[0], rms=CLOSE, name="logits")
    nothing = without_digits(truth)
    for name in nothing:
        assert ours[1][name].norm() < 1e-6 * joined(truth[1]).norm(), name
    errors = {name: rms_error(x.double(), truth[1][name]) for name, x in ours[1].items() if name not in nothing}
    bounds = {name: CLOSE_STREAMS if name.endswith(STREAMS) else CLOSE for name in errors}
    beyond = [name for name in errors if errors[name] > bounds[name]]
    theirs = in_theirs(family, model, ids, **kwargs)[1] if beyond else {}
    for name in beyond:
        assert name.endswith(DECAYS), (name, errors[name])
        assert 2 * errors[name] < rms_error(theirs[name].double(), truth[1][name]), name
    assert_close(joined(ours[1]), joined(truth[1]), rms=CLOSE, name="all gradients")
    return truth


def without_digits(truth):
    """Gradients that are nothing but rounding."""
    largest = joined(truth[1]).norm()
    return [name for name, x in truth[1].items() if x.norm() < NOTHING * largest]


def joined(gradients):
    """All of them in one."""
    return torch.cat([gradient.double().flatten() for _, gradient in sorted(gradients.items())])


def assert_theirs_is_the_error(ours, theirs, truth):
    """Where the two differ by more than the bound, transformers is further from its own float64 result than we are.

    It adds up the gradients of decays as differences of large sums, and loses two to three digits of them. Where both
    are within the bound of the truth, they may differ by the sum of their errors.
    """
    nothing = without_digits(truth)
    for name, x in ours[1].items():
        true = truth[1][name]
        if name in nothing:
            continue
        if rms_error(x, theirs[1][name]) > CLOSE and not name.endswith(STREAMS):
            mine, other = rms_error(x.double(), true), rms_error(theirs[1][name].double(), true)
            assert other > 2 * mine or max(mine, other) < CLOSE, name


def test_every_family_of_the_tested_versions_is_in_the_table():
    (newest,) = re.findall(r"^transformers==([\d.]+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    if Version(transformers.__version__) > Version(newest):
        pytest.skip("a newer transformers may have more; use_myfla warns of them")
    assert sorted(model_files()) == FAMILIES


@cases(family=FAMILIES)
def test_a_cached_step_after_a_training_pass_equals_the_whole(family):
    model, ids = build(family).double().train(), tokens(2, 12)
    name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    with in_float64(family), use_myfla():
        first = model(ids[:, :10], use_cache=True)
        states = getattr(first, name)
        steps = [model(ids[:, t : t + 1], **{name: states, "use_cache": True}).logits for t in (10, 11)]
        got = torch.cat([first.logits, *steps], 1)
        want = model(ids, use_cache=False).logits
    assert_close(got.detach(), want.detach(), rms=SAME)


@cases(family=FAMILIES, length=[1, 5, 64, 130])
def test_logits_and_gradients_equal_transformers(family, length):
    model, ids = build(family), tokens(2, length)
    theirs = in_theirs(family, model, ids)
    with use_myfla():
        ours = logits_and_gradients(model, ids)
    truth = assert_true(family, model, ours, ids)
    assert any("A_log" in name for name in truth[1])
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


@cases(family=FAMILIES, length=[5, 70])
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
        for part in ("A_log", "conv1d", "norm.weight"):
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


@cases(family=FAMILIES, how=[("whole", 1), ("left padded", 1), ("left padded", 3)])
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


@cases(family=FAMILIES, cuts=[(2, 3, 70), (64, 65, 66, 72), (70, 71), (71, 72)])
def test_any_split_through_the_cache_equals_transformers_and_the_whole(family, cuts):
    model, ids = build(family), tokens(2, 73)

    def in_pieces():
        cache, pieces = None, []
        for start, end in zip((0, *cuts), (*cuts, 73)):
            out = model(ids[:, start:end], past_key_values=cache, use_cache=True)
            cache, pieces = out.past_key_values, [*pieces, out.logits]
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
    """What the documents warn of."""
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


@cases(family=["qwen3_next", "olmo_hybrid"])
def test_half_precision_stays_as_close_as_transformers(family):
    model, ids = build(family), tokens(2, 70)
    with torch.no_grad():
        with use_myfla():
            truth = model(ids).logits
            got = model.bfloat16()(ids).logits
        with plain_transformers(family):
            theirs = model(ids).logits
    assert got.dtype == torch.bfloat16
    assert rms_error(got, truth) < 1.3 * rms_error(theirs, truth)


@cases(family=["qwen3_next", "olmo_hybrid"])
def test_gradient_checkpointing_changes_nothing(family):
    model, ids = build(family).train(), tokens(2, 40)
    with use_myfla():
        want = logits_and_gradients(model, ids)
        model.gradient_checkpointing_enable()
        got = logits_and_gradients(model, ids)
    for name in want[1]:
        assert_close(got[1][name], want[1][name], rms=1e-6, name=name)


@pytest.mark.slow
@cases(family=["qwen3_5", "olmo_hybrid"])
def test_compiled_models_have_no_graph_break_and_equal_themselves(family):
    model, ids = build(family), tokens(1, 70)
    torch._dynamo.reset()
    with torch.no_grad(), use_myfla():
        want = model(ids, use_cache=False).logits
        compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
        assert_close(compiled(ids, use_cache=False).logits, want, rms=1e-6)


@pytest.mark.slow
@cases(family=["qwen3_5", "olmo_hybrid"])
def test_exported_models_equal_themselves(family):
    model, ids = build(family), tokens(1, 70)
    with torch.no_grad(), use_myfla():
        want = model(ids, use_cache=False).logits
        exported = torch.export.export(model, (), {"input_ids": ids, "use_cache": False}, strict=False)
        assert_close(exported.module()(input_ids=ids, use_cache=False).logits, want, rms=1e-6)
