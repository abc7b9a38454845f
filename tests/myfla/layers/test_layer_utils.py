"""Unpadding and padding, and a layer's slot in a cache."""

import torch

from myfla.layers import utils
from myfla.testing import cases, raises

MASKS = {
    "left": [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]],
    "right": [[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]],
    "inner": [[1, 0, 1, 0, 1], [0, 1, 1, 0, 1]],
    "empty_rows": [[0, 0, 0, 0, 0], [0, 1, 0, 1, 1], [0, 0, 0, 0, 0]],
    "full": [[1, 1, 1, 1, 1]],
    "nothing": [[0, 0, 0, 0, 0]],
}


class _Layer:
    def __init__(self, layer_idx):
        self.layer_idx = layer_idx


class _Cache(list):
    def update(self, layer_idx, **fields):
        return {"layer_idx": layer_idx, **fields}


@cases(mask=list(MASKS), kind=[torch.bool, torch.int64, torch.float32])
def test_unpad_data_equals_a_loop(mask, kind):
    rows = MASKS[mask]
    indices, offsets, longest = utils.get_unpad_data(torch.tensor(rows).to(kind))
    flat = [value for row in rows for value in row]
    assert indices.tolist() == [i for i, value in enumerate(flat) if value] and indices.dtype == torch.int64
    assert offsets.tolist() == [0] + [sum(map(sum, rows[: n + 1])) for n in range(len(rows))]
    assert offsets.dtype == torch.int32 and longest == max(map(sum, rows)) and isinstance(longest, int)


@cases(mask=list(MASKS), q_len=[0, 1, 3, 5], tail=[(), (2, 3)])
def test_pad_undoes_unpad_with_zeros_at_pads(mask, q_len, tail):
    mask = torch.tensor(MASKS[mask])
    x = torch.randn(mask.shape[0], q_len, 4, *tail)
    own = mask[:, 5 - q_len :].bool()
    packed, indices, offsets = utils.unpad_hidden_states(x, None, mask, q_len)
    assert torch.equal(packed[0], x[own]) and offsets[-1] == own.sum()
    back = utils.repad_hidden_states(packed, indices, mask.shape[0], q_len)
    keep = own.view(*own.shape, *[1] * (x.dim() - 2))
    assert torch.equal(back, torch.where(keep, x, torch.zeros(())))


def test_pads_never_reach_values_or_gradients():
    mask = torch.tensor([[0, 1, 1], [1, 0, 1]])
    x = torch.randn(2, 3, 4)
    x[mask == 0] = float("nan")
    x.requires_grad_()
    packed, indices, _ = utils.unpad_hidden_states(x, None, mask, 3)
    back = utils.repad_hidden_states(packed * 2, indices, 2, 3)
    back.sum().backward()
    assert torch.isfinite(back).all()
    assert torch.equal(x.grad, mask.unsqueeze(-1).expand(2, 3, 4) * 2.0)


def test_explicit_offsets_win_over_the_mask():
    x, offsets = torch.randn(1, 4, 2), torch.tensor([0, 1, 4])
    got, indices, cu = utils.unpad_hidden_states(x, offsets, torch.zeros(1, 4), 4)
    assert got is x and indices is None and cu is offsets
    got, indices, cu = utils.unpad_hidden_states(x, None, None, 4)
    assert got is x and indices is None and cu is None
    assert utils.repad_hidden_states(x, None, 1, 4) is x


def test_mask_edited_in_place_is_obeyed():
    mask = torch.ones(2, 3, dtype=torch.int64)
    assert utils.get_unpad_data(mask)[2] == 3
    mask[:, 0] = 0
    indices, offsets, longest = utils.get_unpad_data(mask)
    assert indices.tolist() == [1, 2, 4, 5] and offsets.tolist() == [0, 2, 4] and longest == 2
    assert utils.get_unpad_indices_and_cu(mask, 1)[0].tolist() == [0, 1]
    mask[1] = 0
    assert utils.get_unpad_indices_and_cu(mask, 1)[0].tolist() == [0]


@cases(dtype=[torch.int32, torch.int64])
def test_repeated_indices_add_up_in_the_gradient(dtype):
    x = torch.randn(4, 2, 3, dtype=torch.float64, requires_grad=True)
    indices = torch.tensor([1, 3, 1, 1], dtype=dtype)
    y = utils.index_first_axis(x, indices)
    do = torch.randn_like(y)
    (y * do).sum().backward()
    assert torch.equal(y, x[indices.long()])
    assert torch.allclose(x.grad[1], do[0] + do[2] + do[3]) and torch.equal(x.grad[3], do[1])
    assert not x.grad[[0, 2]].any()


def test_gradcheck_of_both_index_functions():
    x, indices = torch.randn(3, 2, dtype=torch.float64, requires_grad=True), torch.tensor([4, 0, 2])
    assert torch.autograd.gradcheck(lambda t: utils.index_put_first_axis(t, indices, 6), x)
    assert torch.autograd.gradcheck(lambda t: utils.index_first_axis(t, torch.tensor([2, 2, 0])), x)


def test_put_leaves_zeros_elsewhere():
    y = utils.index_put_first_axis(torch.tensor([[1.0], [2.0]]), torch.tensor([3, 1], dtype=torch.int32), 5)
    assert y.flatten().tolist() == [0, 2, 0, 1, 0]


@cases(q_len=[1, 3, 5], keepdim=[False, True], many=[False, True])
def test_unpad_input_packs_queries_and_states(q_len, keepdim, many):
    mask = torch.tensor(MASKS["left"])
    k, v, q = torch.randn(2, 5, 3), torch.randn(2, 5, 2, 4), torch.randn(2, q_len, 3)
    got_q, states, indices, (cu_q, cu_k), (max_q, max_k) = utils.unpad_input(
        (q, q * 2) if many else q, (k, v), mask, q_len, keepdim)
    own = mask[:, 5 - q_len :].bool()
    want_q = q[:, 0] if q_len == 1 else q[own]
    got_q = got_q if many else (got_q,)
    if keepdim:
        got_q, states = [t.squeeze(0) for t in got_q], [t.squeeze(0) for t in states]
    assert torch.equal(got_q[0], want_q) and (not many or torch.equal(got_q[1], want_q * 2))
    assert torch.equal(states[0], k[mask.bool()]) and torch.equal(states[1], v[mask.bool()])
    assert cu_k.tolist() == [0, 3, 8] and max_k == 5
    if q_len == 1:
        assert indices.tolist() == [0, 1] and indices.dtype == cu_q.dtype == torch.int32
        assert cu_q.tolist() == [0, 1, 2] and max_q == 1
    else:
        assert torch.equal(indices, own.flatten().nonzero().flatten())
        assert cu_q.tolist() == [0, min(q_len, 3), min(q_len, 3) + q_len] and max_q == q_len


def test_layer_reads_and_writes_its_own_slot():
    cache = _Cache([{"recurrent_state": 0}, {"recurrent_state": 1}])
    assert utils.get_layer_cache(_Layer(1), cache) == {"recurrent_state": 1}
    assert utils.get_layer_cache(_Layer(2), cache) is None
    assert utils.get_layer_cache(_Layer(0), None) is None and utils.get_layer_cache(_Layer(None), None) is None
    assert utils.update_layer_cache(_Layer(1), cache, offset=3) == {"layer_idx": 1, "offset": 3}
    assert utils.update_layer_cache(_Layer(1), None, offset=3) is None
    assert utils.require_cache_layer_idx(_Layer(4), cache) == 4


def test_layer_without_a_number_cannot_use_a_cache():
    for call in (utils.get_layer_cache, utils.update_layer_cache, utils.require_cache_layer_idx):
        with raises(ValueError, "_Layer: layer_idx must be given", "past_key_values", "count the layers"):
            call(_Layer(None), _Cache())


def test_errors_name_the_field():
    x = torch.randn(2, 3, 4)
    with raises(ValueError, "get_unpad_indices_and_cu: attention_mask must have shape [batch, sequence]", "(3,)"):
        utils.get_unpad_data(torch.ones(3))
    with raises(ValueError, "get_unpad_indices_and_cu: q_len must lie between 0 and the 3 columns", "got 4"):
        utils.get_unpad_indices_and_cu(torch.ones(2, 3), 4)
    for shape in ((2, 2), (3, 3), (2, 3, 1)):
        with raises(ValueError, "unpad_hidden_states: attention_mask must have shape [2, 3 or more]", str(shape)):
            utils.unpad_hidden_states(x, None, torch.ones(*shape), 3)
    with raises(ValueError, "index_first_axis: x must have at least two axes", "(2,)"):
        utils.index_first_axis(torch.ones(2), torch.tensor([0]))
    with raises(ValueError, "index_put_first_axis: indices must have one axis", "(1, 1)"):
        utils.index_put_first_axis(x, torch.tensor([[0]]), 4)
    with raises(ValueError, "index_put_first_axis: indices must be 2, one for each row of x", "got 1"):
        utils.index_put_first_axis(x, torch.tensor([0]), 4)
    with raises(ValueError, "unpad_input: attention_mask must have shape (2, 3)", "(2, 4)"):
        utils.unpad_input(x, (x,), torch.ones(2, 4), 3)
    with raises(ValueError, "unpad_input: q_len must lie between 1 and 3", "got 0"):
        utils.unpad_input(x[:, :0], (x,), torch.ones(2, 3), 0)
