"""The language models' loss and its gradients."""

import warnings

import torch

import myfla.models.loss as loss
from myfla.testing import assert_close, cases
from small_models import KINDS, VOCABULARY, prompt, small_model


@cases(kind=KINDS, use_l2warp=[False, True])
def test_the_loss_is_that_of_the_next_token(kind, use_l2warp):
    ids = prompt()
    labels = ids.clone()
    labels[0, :4] = -100
    model = small_model(kind, dtype=torch.float64, use_l2warp=use_l2warp).train()
    logits = model(ids).logits.detach().requires_grad_()
    chosen = logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
    counted = labels[:, 1:] != -100
    want = -(chosen * counted).sum() / counted.sum()
    out = model(ids, labels=labels)
    assert_close(out.loss, want, rms=1e-12)
    for extra in (dict(shift_labels=torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)),
                  dict(labels=labels, num_items_in_batch=int(counted.sum())),
                  dict(labels=labels.int(), num_items_in_batch=counted.sum())):  # fmt: skip
        assert_close(model(ids, **extra).loss, want, rms=1e-12)
    grads = torch.autograd.grad(out.loss, out.logits)[0]
    expected = torch.autograd.grad(want, logits)[0]
    if use_l2warp:  # its rule: 1e-4 / tokens * the largest logit, at its place
        largest = logits.detach().max(-1, keepdim=True)
        expected = expected.scatter_add(-1, largest.indices, 1e-4 / ids.numel() * largest.values)
    assert_close(grads, expected, rms=1e-12)


@cases(kind=KINDS, use_l2warp=[False, True], items=[None, 5])
def test_the_loss_in_parts_equals_the_loss_at_once(kind, use_l2warp, items):
    size, loss.PART = loss.PART, 4
    try:
        ids = prompt(3, 7)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parts = small_model(kind, dtype=torch.float64, use_l2warp=use_l2warp, fuse_cross_entropy=False,
                                fuse_linear_cross_entropy=True).train()
        whole = small_model(kind, dtype=torch.float64, use_l2warp=use_l2warp).train()
        rows = []
        parts.lm_head.register_forward_hook(lambda *given: rows.append(1))
        got, want = (m(ids, labels=ids, num_items_in_batch=items) for m in (parts, whole))
        assert got.logits is None and not rows
        assert_close(got.loss, want.loss, rms=1e-12)
        got.loss.backward()
        want.loss.backward()
        for (name, a), b in zip(parts.named_parameters(), whole.parameters()):
            assert_close(a.grad, b.grad, rms=1e-9, name=name)
        assert parts(ids).logits.shape == (3, 7, VOCABULARY)
    finally:
        loss.PART = size


def test_half_precision_logits_give_a_float32_loss():
    model = small_model("gated_deltanet", dtype=torch.bfloat16).train()
    ids = prompt()
    out = model(ids, labels=ids)
    assert out.logits.dtype == torch.bfloat16 and out.loss.dtype == torch.float32
    assert_close(out.loss, small_model("gated_deltanet").train()(ids, labels=ids).loss, rms=5e-2)
