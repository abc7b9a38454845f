"""Every family of transformers with a gated delta rule computes with `use_myfla` what it computes without."""

import pytest
import torch

pytest.importorskip("transformers", minversion="5.15")

from transformers import DataCollatorWithFlattening  # noqa: E402

from hf_small_models import CONFIGS, build, plain_transformers, tokens  # noqa: E402
from myfla.integrations.hf_models import model_files  # noqa: E402
from myfla.integrations.transformers import packed_kwargs, use_myfla  # noqa: E402
from myfla.testing import assert_close, cases, rms_error  # noqa: E402

FAMILIES = sorted(CONFIGS)
# The attention of these two picks blocks of the row it stands in: packed sequences are no rows to it.
PACKABLE = [family for family in FAMILIES if family not in ("qwen4_exp", "glm5_next")]
# Of these, transformers computes the same in pieces as in one.
SPLITTABLE = [family for family in FAMILIES if family != "glm5_next"]
LOGITS = GRADIENTS = 1e-5
# These parameters add up terms that cancel: in transformers itself they move by up to 2e-4 when the weights are rounded
# another way in their last bit. `test_hf_rules.py` holds both sides' gradient of the decay against float64.
CANCELLING = 5e-4
CANCELLING_PARAMETERS = ("A_log", "dt_bias", "a_proj.weight", "in_proj_a.weight", "_hc.scale", "_hc.base")


def logits_and_gradients(model, ids, **kwargs):
    """Logits, and by name the gradients of a random projection of them."""
    model.zero_grad()
    logits = model(ids, **{"use_cache": False, **kwargs}).logits
    (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(5))).sum().backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(got, want):
    """Both of what `logits_and_gradients` gives."""
    assert_close(got[0], want[0], rms=LOGITS, name="logits")
    assert sorted(got[1]) == sorted(want[1])
    size = max(gradient.norm() for gradient in want[1].values())
    for name, gradient in want[1].items():
        if max(gradient.norm(), got[1][name].norm()) < 1e-6 * size:
            continue  # zero but for rounding, as of an attention's keys where there is one token
        bound = CANCELLING if name.endswith(CANCELLING_PARAMETERS) else GRADIENTS
        assert_close(got[1][name], gradient, rms=bound, name=name)
    whole = [torch.cat([gradient.flatten() for _, gradient in sorted(side[1].items())]) for side in (got, want)]
    assert_close(*whole, rms=GRADIENTS, name="all gradients")


def test_every_family_of_the_installed_transformers_is_tested():
    assert sorted(model_files()) == FAMILIES


@cases(family=FAMILIES, length=[1, 5, 64, 130])
def test_logits_and_gradients_equal_transformers(family, length):
    model, ids = build(family), tokens(2, length)
    with plain_transformers(family):
        want = logits_and_gradients(model, ids)
    with use_myfla():
        got = logits_and_gradients(model, ids)
    assert any("A_log" in name for name in got[1])
    assert_same(got, want)


@cases(family=FAMILIES)
def test_the_rule_and_the_convolution_matter_in_these_models(family):
    model, ids = build(family), tokens(1, 40)
    with torch.no_grad(), use_myfla():
        for part in ("A_log", "conv1d", "norm.weight"):
            before = model(ids).logits
            for name, weight in model.named_parameters():
                weight.add_(1.0 if part in name else 0.0)
            assert rms_error(model(ids).logits, before) > 100 * LOGITS, part


@cases(family=FAMILIES, side=["left", "right"])
def test_padded_batches_equal_transformers(family, side):
    model, ids = build(family), tokens(3, 40)
    mask = torch.ones_like(ids)
    for row, pads in enumerate((0, 7, 33)):
        cut = slice(0, pads) if side == "left" else slice(40 - pads, 40)
        mask[row, cut] = 0
        ids[row, cut] = 0
    with plain_transformers(family):
        want = logits_and_gradients(model, ids, attention_mask=mask)
    with use_myfla():
        got = logits_and_gradients(model, ids, attention_mask=mask)
    assert_same(got, want)


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
        for start, end in zip((0,) + cuts, cuts + (73,)):
            out = model(ids[:, start:end], past_key_values=cache, use_cache=True)
            cache, pieces = out.past_key_values, pieces + [out.logits]
        return torch.cat(pieces, 1)

    with torch.no_grad():
        with plain_transformers(family):
            want = in_pieces()
        with use_myfla():
            assert_close(in_pieces(), want, rms=LOGITS, name="transformers in the same pieces")
            if family in SPLITTABLE:
                assert_close(in_pieces(), model(ids).logits, rms=LOGITS, name="in one piece")


@cases(family=PACKABLE)
def test_packed_sequences_equal_the_same_sequences_alone(family):
    model, ids = build(family), tokens(1, 100)
    lengths = [30, 1, 2, 67]
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    with use_myfla():
        logits, gradients = logits_and_gradients(model, ids, **packed_kwargs(positions))
        model.zero_grad()
        alone = [model(piece, use_cache=False).logits for piece in ids.split(lengths, 1)]
        weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(5))
        (torch.cat(alone, 1) * weights).sum().backward()
    want = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert_same((logits, gradients), (torch.cat(alone, 1).detach(), want))


@cases(family=PACKABLE)
def test_packed_batches_of_the_flattening_collator_train(family):
    model, ids = build(family), tokens(1, 50)
    collate = DataCollatorWithFlattening(return_flash_attn_kwargs=True, return_seq_idx=True)
    batch = collate([{"input_ids": piece[0].tolist()} for piece in ids.split([20, 3, 27], 1)])
    with use_myfla():
        loss = model(**batch, use_cache=False).loss
        want = model(ids, **packed_kwargs(batch["position_ids"])).logits
    labels = batch["labels"][0, 1:]
    assert_close(loss, torch.nn.functional.cross_entropy(want[0, :-1], labels), rms=LOGITS)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


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
    assert_same(got, want)


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
