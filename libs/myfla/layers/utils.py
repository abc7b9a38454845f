"""From padded batches to packed tokens and back, and from a layer to its slot in a cache.

Nothing is stored between calls, so changes of a mask in place take effect.
"""

from typing import Any, Dict, Optional, Tuple, Union

import torch

from myfla.ops.utils.index import prepare_cu_seqlens_from_lens, prepare_lens_from_mask
from myfla.utils.errors import value_error
from myfla.utils.tensors import check_integers, check_size, check_tensor

__all__ = ["get_unpad_data", "index_first_axis", "index_put_first_axis", "pad_input", "unpad_input"]

Tensors = Union[torch.Tensor, Tuple[torch.Tensor, ...]]


def index_first_axis(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Select rows of a tensor. If an index occurs twice, the gradients of both rows are added.

    Args:
        x: ``[b, ...]``.
        indices: ``[n]`` integers below b.

    Returns:
        ``[n, ...]``.

    Raises:
        ValueError: an index is out of range (checked on a CPU only).

    Example:
        >>> index_first_axis(torch.tensor([[1], [2], [3]]), torch.tensor([2, 0])).tolist()
        [[3], [1]]
    """
    _check_rows("index_first_axis", x, indices)
    try:
        return x.index_select(0, indices)
    except (IndexError, RuntimeError) as problem:  # on a CPU; elsewhere reading the values would wait for the device
        raise value_error("index_first_axis", "indices", f"must lie below {x.shape[0]}", str(problem)) from None


def index_put_first_axis(x: torch.Tensor, indices: torch.Tensor, first_axis_dim: int) -> torch.Tensor:
    """Write rows into a tensor of zeros.

    Args:
        x: ``[n, ...]``.
        indices: ``[n]`` distinct integers below ``first_axis_dim``.
        first_axis_dim: number of rows of the result.

    Returns:
        ``[first_axis_dim, ...]``.

    Raises:
        ValueError: the number of indices differs from n, or one is out of range (checked on a CPU only).

    Example:
        >>> index_put_first_axis(torch.tensor([[3], [1]]), torch.tensor([2, 0]), 4).tolist()
        [[1], [0], [3], [0]]
    """
    _check_rows("index_put_first_axis", x, indices)
    check_size("index_put_first_axis", "first_axis_dim", first_axis_dim)
    if indices.shape[0] != x.shape[0]:
        rule = f"must be {x.shape[0]}, one for each row of x"
        raise value_error("index_put_first_axis", "indices", rule, indices.shape[0])
    rows = x.new_zeros(first_axis_dim, *x.shape[1:])
    try:
        return rows.index_copy_(0, indices.long(), x)
    except (IndexError, RuntimeError) as problem:
        raise value_error("index_put_first_axis", "indices", f"must lie below {first_axis_dim}", str(problem)) from None


def get_unpad_indices_and_cu(
    attention_mask: torch.Tensor, q_len: Optional[int] = None
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Positions of the real tokens of a mask.

    Args:
        attention_mask: ``[B, T]`` of 0 and 1, padding anywhere.
        q_len: use only the last ``q_len`` columns; all if not given.

    Returns:
        The positions in the flattened ``[B, q_len]``, int64, and the offsets of the packed rows, int32 ``[B + 1]``.

    Example:
        >>> [t.tolist() for t in get_unpad_indices_and_cu(torch.tensor([[0, 1, 1], [0, 0, 1]]), 2)]
        [[0, 1, 3], [0, 2, 3]]
    """
    _check_mask("get_unpad_indices_and_cu", attention_mask)
    if attention_mask.dim() != 2:
        rule = "must have shape [batch, sequence]"
        raise value_error("get_unpad_indices_and_cu", "attention_mask", rule, tuple(attention_mask.shape))
    total = attention_mask.shape[1]
    if q_len is not None:
        if not 0 <= q_len <= total:
            rule = f"must lie between 0 and the {total} columns of attention_mask"
            raise value_error("get_unpad_indices_and_cu", "q_len", rule, q_len)
        attention_mask = attention_mask[:, total - q_len :]
    indices = attention_mask.flatten().nonzero().flatten()
    return indices, prepare_cu_seqlens_from_lens(prepare_lens_from_mask(attention_mask))


def get_unpad_data(attention_mask: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor, int]:
    """Positions of the real tokens of a mask. Waits for the device.

    Args:
        attention_mask: ``[B, T]`` of 0 and 1, padding anywhere.

    Returns:
        The positions in the flattened ``[B, T]``, int64; the offsets of the packed rows, int32 ``[B + 1]``; and the
        number of real tokens in the longest row.

    Raises:
        ValueError, TypeError: ``attention_mask`` is not a tensor of two dimensions.

    Example:
        >>> get_unpad_data(torch.tensor([[0, 1, 1], [0, 0, 1]]))[2]
        2
    """
    indices, cu_seqlens = get_unpad_indices_and_cu(attention_mask)
    lens = cu_seqlens[1:] - cu_seqlens[:-1]
    return indices, cu_seqlens, int(lens.max()) if lens.numel() else 0


def unpad_hidden_states(
    hidden_states: torch.Tensor,
    cu_seqlens: Optional[torch.Tensor],
    attention_mask: Optional[torch.Tensor],
    q_len: int,
) -> Tuple[torch.Tensor, Optional[torch.Tensor], Optional[torch.Tensor]]:
    """Pack the real tokens of a batch. Without a mask, or with ``cu_seqlens``, the input is returned.

    Args:
        hidden_states: ``[B, q_len, ...]``. The content of padding is not read.
        cu_seqlens: ``[N + 1]`` of a batch that is packed already; then the mask is ignored.
        attention_mask: ``[B, T]`` of 0 and 1 with ``T >= q_len``; its last columns belong to the input.
        q_len: number of tokens.

    Returns:
        ``[1, total, ...]``, the positions of the tokens for `repad_hidden_states`, and the offsets ``[B + 1]``; or the
        input, None, and ``cu_seqlens``.
    """
    if cu_seqlens is not None or attention_mask is None:
        return hidden_states, None, cu_seqlens
    batch = hidden_states.shape[0]
    if attention_mask.dim() != 2 or attention_mask.shape[0] != batch or attention_mask.shape[1] < q_len:
        rule = f"must have shape [{batch}, {q_len} or more]"
        raise value_error("unpad_hidden_states", "attention_mask", rule, tuple(attention_mask.shape))
    indices, cu_seqlens = get_unpad_indices_and_cu(attention_mask, q_len)
    return index_first_axis(hidden_states.flatten(0, 1), indices).unsqueeze(0), indices, cu_seqlens


def repad_hidden_states(
    hidden_states: torch.Tensor, indices: Optional[torch.Tensor], batch_size: int, q_len: int
) -> torch.Tensor:
    """Undo `unpad_hidden_states`: ``[1, total, ...]`` to ``[batch_size, q_len, ...]`` with zeros at the padding.

    Without ``indices`` the input is returned as it came.
    """
    return hidden_states if indices is None else pad_input(hidden_states.squeeze(0), indices, batch_size, q_len)


def pad_input(hidden_states: torch.Tensor, indices: torch.Tensor, batch_size: int, seq_len: int) -> torch.Tensor:
    """Write packed tokens into a padded batch of zeros.

    Args:
        hidden_states: ``[total, ...]``.
        indices: ``[total]``, the positions of the tokens in the flattened ``[batch_size, seq_len]``.
        batch_size, seq_len: sizes of the batch.

    Returns:
        ``[batch_size, seq_len, ...]``.

    Raises:
        ValueError: sizes that do not fit, or an index out of range.

    Example:
        >>> pad_input(torch.tensor([[7], [8]]), torch.tensor([1, 2]), 2, 2).squeeze(-1).tolist()
        [[0, 7], [8, 0]]
    """
    for name, size in (("batch_size", batch_size), ("seq_len", seq_len)):
        check_size("pad_input", name, size)
    rows = index_put_first_axis(hidden_states, indices, batch_size * seq_len)
    return rows.view(batch_size, seq_len, *rows.shape[1:])


def unpad_input(
    q: Tensors, states: Tuple[torch.Tensor, ...], attention_mask: torch.Tensor, q_len: int, keepdim: bool = False
) -> Tuple[Any, ...]:
    """Pack queries and states (keys, values) of a batch.

    Args:
        q: ``[B, q_len, ...]``, or a tuple of such.
        states: each ``[B, T, ...]``.
        attention_mask: ``[B, T]`` of 0 and 1.
        q_len: T, 1 (decoding; then every row has one query, independent of the mask), or any length between;
            queries are the last tokens.
        keepdim: give ``[1, total, ...]`` instead of ``[total, ...]``.

    Returns:
        q, states, the numbers of the queries, ``(cu_seqlens_q, cu_seqlens_k)`` and ``(max_len_q, max_len_k)``.

    Example:
        >>> x, mask = torch.tensor([[[5.0], [6.0]], [[7.0], [8.0]]]), torch.tensor([[0, 1], [1, 1]])
        >>> q, (k,), indices, (cu_q, cu_k), longest = unpad_input(x, (x,), mask, q_len=2)
        >>> q.flatten().tolist(), cu_q.tolist(), longest
        ([6.0, 7.0, 8.0], [0, 1, 3], (2, 2))
    """
    queries = (q,) if isinstance(q, torch.Tensor) else q
    for name, group in (("q", queries), ("states", states)):
        if not isinstance(group, (tuple, list)) or not group:
            raise value_error("unpad_input", name, "must be a tuple of tensors", group)
        for x in group:
            check_tensor("unpad_input", name, x)
            if x.dim() < 2:
                raise value_error("unpad_input", name, "must have shape [B, T, ...]", tuple(x.shape))
    queries = tuple(queries)
    batch, seq_len = states[0].shape[:2]
    _check_mask("unpad_input", attention_mask)
    check_size("unpad_input", "q_len", q_len)
    if tuple(attention_mask.shape) != (batch, seq_len):
        rule = f"must have shape {(batch, seq_len)}"
        raise value_error("unpad_input", "attention_mask", rule, tuple(attention_mask.shape))
    if not 1 <= q_len <= seq_len:
        raise value_error("unpad_input", "q_len", f"must lie between 1 and {seq_len}, the length of the states", q_len)
    for name, group, length in (("q", queries, q_len), ("states", states, seq_len)):
        for x in group:
            if x.shape[:2] != (batch, length):
                raise value_error("unpad_input", name, f"must have shape [{batch}, {length}, ...]", tuple(x.shape))
            check_tensor("unpad_input", name, x, attention_mask, "attention_mask")
    indices_k, cu_k, max_k = get_unpad_data(attention_mask)
    states = tuple(index_first_axis(state.flatten(0, 1), indices_k) for state in states)
    if q_len == 1 != seq_len:
        cu_q = torch.arange(batch + 1, dtype=torch.int32, device=attention_mask.device)
        indices_q, max_q = cu_q[:-1], 1
        queries = tuple(query.squeeze(1) for query in queries)
    else:
        indices_q, cu_q, max_q = get_unpad_data(attention_mask[:, seq_len - q_len :])
        queries = tuple(index_first_axis(query.flatten(0, 1), indices_q) for query in queries)
    if keepdim:
        queries, states = (tuple(t.unsqueeze(0) for t in group) for group in (queries, states))
    return queries[0] if isinstance(q, torch.Tensor) else queries, states, indices_q, (cu_q, cu_k), (max_q, max_k)


def require_cache_layer_idx(module: Any, past_key_values: Any) -> Optional[int]:
    """The module's ``layer_idx``; a `ValueError` if a cache is given and the module has none."""
    layer_idx = getattr(module, "layer_idx", None)
    if past_key_values is not None and layer_idx is None:
        rule = "must be given to the layer that is called with past_key_values"
        raise value_error(type(module).__name__, "layer_idx", rule, None, "count the layers of a model from 0")
    return layer_idx


def get_layer_cache(module: Any, past_key_values: Any) -> Optional[Dict[str, Any]]:
    """The module's slot in a cache, or None if there is no cache or no such slot yet."""
    layer_idx = require_cache_layer_idx(module, past_key_values)
    if past_key_values is None or layer_idx is None or len(past_key_values) <= layer_idx:
        return None
    return past_key_values[layer_idx]


def update_layer_cache(module: Any, past_key_values: Any, **kwargs: Any) -> Optional[Dict[str, Any]]:
    """Write the module's slot with `Cache.update`; nothing is done without a cache."""
    layer_idx = require_cache_layer_idx(module, past_key_values)
    return None if past_key_values is None else past_key_values.update(layer_idx=layer_idx, **kwargs)


def _check_mask(who: str, mask: torch.Tensor) -> None:
    check_tensor(who, "attention_mask", mask)
    if mask.device.type == "meta":
        raise value_error(who, "attention_mask", "must have values", "a tensor on the device meta")


def _check_rows(who: str, x: torch.Tensor, indices: torch.Tensor) -> None:
    check_tensor(who, "x", x)
    check_integers(who, "indices", indices, 1)
    check_tensor(who, "indices", indices, x)
    if x.dim() < 2:
        raise value_error(who, "x", "must have at least two axes", tuple(x.shape))
    if indices.dim() != 1:
        raise value_error(who, "indices", "must have one axis", tuple(indices.shape))
