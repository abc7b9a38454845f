"""Causal depthwise convolution as functions: whole sequences, one step, and the state between calls."""

from typing import Any, Optional, Tuple

import torch

from myfla.modules.conv_function import conv_rows
from myfla.modules.conv_native import conv_kernels, conv_native, final_state_native
from myfla.modules.conv_taps import Heads, heads_of
from myfla.utils.autograd import records
from myfla.utils.errors import refuse_unknown, value_error
from myfla.utils.rows import from_rows, to_rows
from myfla.utils.tensors import check_size, check_tensor
from myfla.utils.tracing import tracing
from myfla.utils.varlen import check_cu_seqlens

ACTIVATIONS = ("silu", "swish", None)
BACKENDS = ("triton", "cuda", "mix")
_NAMES = ("x", "weight", "bias", "residual", "initial_state", "output_final_state", "activation", "backend",
          "cu_seqlens", "cu_seqlens_cpu", "chunk_indices", "cp_context")


def causal_conv1d(
    x: torch.Tensor,
    weight: Optional[torch.Tensor] = None,
    bias: Optional[torch.Tensor] = None,
    residual: Optional[torch.Tensor] = None,
    initial_state: Optional[torch.Tensor] = None,
    output_final_state: Optional[bool] = False,
    activation: Optional[str] = None,
    backend: Optional[str] = "triton",
    cu_seqlens: Optional[torch.Tensor] = None,
    cu_seqlens_cpu: Optional[torch.Tensor] = None,
    chunk_indices: Optional[torch.Tensor] = None,
    cp_context: Any = None,
    **kwargs: Any,
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """Depthwise causal convolution: ``y[t] = act(sum_s weight[:, W-1-s] * x[t-s] + bias) + residual[t]``.

    Differentiable in every tensor, final state included. Sums are float32 (float64 where an argument is float64) and
    rounded once.

    Args:
        x: ``[B, T, D]``, or ``[B, T, H, D/H]``; packed ``[1, T, D]`` with ``cu_seqlens``.
        weight: ``[D, W]``.
        bias: ``[D]``.
        residual: shaped as x; added after the activation.
        initial_state: the last W inputs of each sequence so far, ``[N, D, W]``, newest last; zeros if not given.
        output_final_state: also return the state after the last token.
        activation: ``"silu"`` or ``"swish"`` (the same), or None.
        backend: an official name, ``"triton"``, ``"cuda"`` or ``"mix"``; all mean this implementation. cu_seqlens: ``[N
            + 1]`` int32 or int64, where each packed sequence starts, and the end. cu_seqlens_cpu, chunk_indices:
            accepted for the official signature, and not used.
        cp_context: context parallelism; not available.

    Returns:
        ``y`` shaped as x, and the final state ``[N, D, W]`` in the dtype of x, or None.

    Raises:
        ValueError: an argument of the wrong shape, name or kind.
        TypeError: an unknown keyword.

    Example:
        >>> y, state = causal_conv1d(torch.ones(1, 3, 2), torch.ones(2, 4), output_final_state=True)
        >>> y[0, :, 0].tolist(), tuple(state.shape)
        ([1.0, 2.0, 3.0], (1, 2, 4))
    """
    refuse_unknown("causal_conv1d", kwargs, _NAMES)
    if backend not in BACKENDS:
        raise value_error("causal_conv1d", "backend", f"must be one of {list(BACKENDS)}", backend)
    refuse_context("causal_conv1d", cp_context)
    final = bool(output_final_state)
    return run("causal_conv1d", x, weight, bias, residual, initial_state, final, activation, cu_seqlens)


def run(
    who: str, x: torch.Tensor, weight: Optional[torch.Tensor], bias: Optional[torch.Tensor],
    residual: Optional[torch.Tensor], state: Optional[torch.Tensor], output_final_state: bool,
    activation: Optional[str], cu_seqlens: Optional[torch.Tensor], state_name: str = "initial_state",
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """`causal_conv1d` under other names for its messages."""
    weight = check_weight(who, weight)
    count = check(who, x, weight, bias, residual, state, activation, cu_seqlens, state_name)
    shape, D = x.shape, weight.shape[0]
    x = x.reshape(x.shape[0], x.shape[1], D)
    residual = None if residual is None else residual.reshape(x.shape)
    kernels = conv_kernels(weight, x, bias, residual, state)
    if kernels is not None and output_final_state and not records(x, weight, bias, residual, state):
        silu = activation is not None
        y, final = kernels.conv_forward(x, weight, bias, residual, state, silu, cu_seqlens, final=x.dtype)
        return y.reshape(shape), final
    if kernels is not None:
        y = conv_native(kernels, x, weight, bias, residual, state, activation, cu_seqlens).reshape(shape)
        return y, _final_state(x, weight.shape[1], state, cu_seqlens, count) if output_final_state else None
    rows, rest, heads, past = x, residual, None, state
    if cu_seqlens is not None and tracing(x):
        rest = None if residual is None else to_rows(residual, cu_seqlens)
        y = from_rows(conv_rows(to_rows(x, cu_seqlens), weight, bias, rest, state, activation, None), cu_seqlens)
        final = _final_state(x, weight.shape[1], state, cu_seqlens, count) if output_final_state else None
        return y.reshape(shape), final
    if cu_seqlens is not None:
        cu_seqlens = cu_seqlens.to(x.device)
        rows, heads = _unpack(x, cu_seqlens, count, weight.shape[1])
        rest = None if residual is None else residual.reshape(rows.shape)
        past = state if heads is not None or rows.shape[0] == count else None
    y = conv_rows(rows, weight, bias, rest, past, activation, heads).reshape(shape)
    final = _final_state(x, weight.shape[1], state, cu_seqlens, count) if output_final_state else None
    return y, final


def causal_conv1d_update(
    x: torch.Tensor,
    cache: torch.Tensor,
    residual: Optional[torch.Tensor] = None,
    weight: Optional[torch.Tensor] = None,
    bias: Optional[torch.Tensor] = None,
    activation: Optional[str] = None,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """One token for each of N sequences.

    Args:
        x: ``[N, D]``, ``[1, N, D]`` or ``[N, 1, D]``.
        cache: the last W inputs of each sequence, ``[N, D, W]``, newest last. It is not changed: the official kernel
            shifts it in place, this function returns a new one.
        residual: shaped as x; added after the activation.
        weight: ``[D, W]``.
        bias: ``[D]``.
        activation: ``"silu"``, ``"swish"`` or None.

    Returns:
        ``y`` shaped as x, and the new cache, in the dtype of the old one.

    Example:
        >>> y, cache = causal_conv1d_update(torch.ones(2, 3), torch.zeros(2, 3, 4), weight=torch.ones(3, 4))
        >>> cache[0, 0].tolist()
        [0.0, 0.0, 0.0, 1.0]
    """
    return step("causal_conv1d_update", x, cache, residual, weight, bias, activation)


def step(
    who: str, x: torch.Tensor, cache: Optional[torch.Tensor], residual: Optional[torch.Tensor],
    weight: Optional[torch.Tensor], bias: Optional[torch.Tensor], activation: Optional[str],
) -> Tuple[torch.Tensor, torch.Tensor]:
    """`causal_conv1d_update` under another name for its messages; a cache of None is a new one."""
    check_tensor(who, "x", x)
    if x.dim() not in (2, 3) or (x.dim() == 3 and 1 not in x.shape[:2]) or x.shape[-1] == 0:
        raise value_error(who, "x", "must be one token per sequence, [N, D], [1, N, D] or [N, 1, D]", tuple(x.shape))
    rows = x.reshape(-1, 1, x.shape[-1])
    rest = residual
    if residual is not None:
        check_tensor(who, "residual", residual, x)
        if residual.shape != x.shape:
            raise value_error(who, "residual", f"must have the shape of x, {tuple(x.shape)}", tuple(residual.shape))
        rest = residual.reshape(rows.shape)
    weight = check_weight(who, weight)
    check(who, rows, weight, bias, rest, cache, activation, None, "cache")
    kernels = None if records(x, weight, bias, residual, cache) else conv_kernels(weight, x, bias, residual, cache)
    if kernels is not None:
        kind = x.dtype if cache is None else cache.dtype
        y, moved = kernels.conv_forward(rows, weight, bias, rest, cache, activation is not None, final=kind)
        return y.reshape(x.shape), moved
    y = conv_rows(rows, weight, bias, rest, cache, activation, None)
    if cache is None:
        cache = rows.new_zeros(rows.shape[0], *weight.shape)
    # All numbers move by one place, also across the ends of rows, which the newest input then replaces: one long copy
    # is several times faster than one of W - 1 numbers for each channel.
    moved = torch.roll(cache, -1)
    moved.select(2, -1).copy_(rows[:, 0])
    return y.reshape(x.shape), moved


def causal_conv1d_update_states(
    x: torch.Tensor,
    state_len: int,
    initial_state: Optional[torch.Tensor] = None,
    cu_seqlens: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """The last ``state_len`` inputs of each sequence, reaching back into its initial state where it is shorter.

    Args:
        x: ``[B, T, D]``, or packed ``[1, T, D]`` or ``[T, D]`` with ``cu_seqlens``.
        state_len: W.
        initial_state: ``[N, D, W]``; zeros if not given.
        cu_seqlens: ``[N + 1]``.

    Returns:
        ``[N, D, W]`` in the dtype of x: slot ``w`` holds input ``T - W + w``. Always a new tensor.

    Example:
        >>> causal_conv1d_update_states(torch.tensor([[[1.0], [2.0]]]), 3).tolist()
        [[[0.0, 1.0, 2.0]]]
    """
    who = "causal_conv1d_update_states"
    check_size(who, "state_len", state_len, 1)
    check_tensor(who, "x", x)
    if x.dim() == 2 and cu_seqlens is not None:
        x = x.unsqueeze(0)
    if x.dim() != 3:
        raise value_error(who, "x", "must have shape [B, T, D], or [T, D] with cu_seqlens", tuple(x.shape))
    B, T, D = x.shape
    count = B if cu_seqlens is None else check_cu_seqlens(who, cu_seqlens, B, T, x)
    if initial_state is not None:
        check_tensor(who, "initial_state", initial_state, x)
    _check_state(who, "initial_state", initial_state, (count, D, state_len))
    return _final_state(x, state_len, initial_state, cu_seqlens, count)


def check_weight(who: str, weight: Optional[torch.Tensor]) -> torch.Tensor:
    """The kernel, if it is one."""
    if not isinstance(weight, torch.Tensor) or weight.dim() != 2:
        got = tuple(weight.shape) if isinstance(weight, torch.Tensor) else weight
        raise value_error(who, "weight", "must have shape [D, W]", got)
    if weight.shape[1] < 1:
        raise value_error(who, "weight", "must have shape [D, W] with W from 1", tuple(weight.shape))
    return weight


def check(
    who: str, x: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor], residual: Optional[torch.Tensor],
    state: Optional[torch.Tensor], activation: Optional[str], cu_seqlens: Optional[torch.Tensor], state_name: str,
) -> int:
    """Refuse arguments that do not fit together; returns N, the number of sequences."""
    D, W = weight.shape
    check_tensor(who, "x", x, weight, "weight")
    if x.dim() < 3 or not x.is_floating_point():
        raise value_error(who, "x", "must be a floating tensor [B, T, D]", f"{x.dtype} {tuple(x.shape)}")
    if x.shape[2:].numel() != D:
        raise value_error(who, "x", f"must have {D} channels, as the weight has", tuple(x.shape))
    if bias is not None:
        check_tensor(who, "bias", bias, x)
    if bias is not None and bias.shape != (D,):
        raise value_error(who, "bias", f"must have shape ({D},)", tuple(bias.shape))
    if residual is not None:
        check_tensor(who, "residual", residual, x)
        if not residual.is_floating_point():
            raise value_error(who, "residual", "must be a floating tensor", residual.dtype)
        if residual.shape != x.shape:
            raise value_error(who, "residual", f"must have the shape of x, {tuple(x.shape)}", tuple(residual.shape))
    if activation not in ACTIVATIONS:
        raise value_error(who, "activation", f"must be one of {list(ACTIVATIONS)}", activation)
    count = x.shape[0] if cu_seqlens is None else check_cu_seqlens(who, cu_seqlens, x.shape[0], x.shape[1], x)
    if state is not None:
        check_tensor(who, state_name, state, x)
        if not state.is_floating_point():
            raise value_error(who, state_name, "must be a floating tensor", state.dtype)
    _check_state(who, state_name, state, (count, D, W))
    return count


def refuse_context(who: str, cp_context: Any) -> None:
    """Refuse a context for parallel ranks."""
    if cp_context is not None:
        raise value_error(who, "cp_context", "must be None: there is no context parallelism here", cp_context)


def _check_state(who: str, name: str, state: Optional[torch.Tensor], shape: Tuple[int, int, int]) -> None:
    if state is not None and tuple(state.shape) != shape:
        rule, got = f"must have shape [N, D, W] = {shape}", tuple(state.shape)
        raise value_error(who, name, rule, got, "one for each sequence")


def _unpack(x: torch.Tensor, cu_seqlens: torch.Tensor, count: int, width: int) -> Tuple[torch.Tensor, Optional[Heads]]:
    """Packed sequences of one length are a batch; others have heads, unless no window is wider than a token."""
    T, D = x.shape[1:]
    length = T // count if count else 0
    if length * count == T and bool((cu_seqlens[1:] - cu_seqlens[:-1] == length).all()):
        return x.view(count, length, D), None
    return x, heads_of(cu_seqlens, T, width) if width > 1 else None


def _final_state(
    x: torch.Tensor, width: int, state: Optional[torch.Tensor], cu_seqlens: Optional[torch.Tensor], count: int
) -> torch.Tensor:
    T, D = x.shape[1:]
    if not records(x, state):
        kernels = conv_kernels(x.new_empty(D, width), x, state)
        if kernels is not None:
            return final_state_native(kernels, x, width, state, cu_seqlens, x.dtype)
    old = x.new_zeros(count, D, width) if state is None else state.to(x.dtype)
    if cu_seqlens is None and tracing():
        return torch.cat([old, x.transpose(1, 2)], -1)[:, :, -width:].contiguous()
    if cu_seqlens is None or T == 0:
        new = x.transpose(1, 2)[:, :, max(T - width, 0):]
        kept = old[:, :, min(T, width):]
        return torch.cat([kept, new.to(x.dtype)], -1) if T else old.clone()
    offsets = cu_seqlens.to(x.device, torch.int64).unsqueeze(1)
    starts, ends = offsets[:-1], offsets[1:]
    token = ends - width + torch.arange(width, device=x.device)  # [N, W]
    recent = x[0].index_select(0, token.clamp(min=0).flatten()).view(count, width, D).transpose(1, 2)
    slot = (token - starts + width).clamp(max=width - 1).unsqueeze(1).expand(-1, D, -1)
    return torch.where((token >= starts).unsqueeze(1), recent, old.gather(2, slot)).contiguous()
