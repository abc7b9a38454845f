"""Rotary position embeddings (RoFormer, arXiv 2104.09864): a token's position as rotations of its channels."""

from typing import Any, Optional, Tuple, Union

import torch
from torch import nn

from myfla.utils.dtypes import accumulation_dtype, has_float64
from myfla.utils.errors import value_error
from myfla.utils.rows import segments_of
from myfla.utils.tensors import INTEGERS, check_tensor
from myfla.utils.tracing import tracing
from myfla.utils.varlen import check_cu_seqlens

__all__ = ["RotaryEmbedding", "rotary_embedding", "rotate_by_position"]

Offset = Union[int, torch.Tensor]
FARTHEST = 1 << 62  # largest position, within int64


class RotaryEmbedding(nn.Module):
    """Rotates queries and keys by their positions; with ``scale_base`` XPos (arXiv 2212.10554).

    Channel pair i of ``dim / 2`` is rotated by ``position * base^(-2i / dim)``. Nothing is kept between calls; angles
    are float64, and the result is rounded once.

    Args:
        dim: channels of a head that are rotated, the first ones; even.
        base: the slowest rotation is by about ``1 / base`` for each token.
        scale_base: for XPos, the number of tokens in which lengths change by a factor of about e; 512 is usual.
        interleaved: pairs are neighbouring channels (GPT-J), not one from each half of the head (GPT-NeoX).
        pos_idx_in_fp32: False rounds positions to the dtype of ``inv_freq`` first, as in the training of some models.
        device: of ``inv_freq``.

    Raises:
        ValueError: an odd ``dim``.

    Example:
        >>> q = k = torch.ones(1, 2, 1, 4)
        >>> [x.shape for x in RotaryEmbedding(4)(q, k, seqlen_offset=7)]
        [torch.Size([1, 2, 1, 4]), torch.Size([1, 2, 1, 4])]
    """

    inv_freq: torch.Tensor

    def __init__(
        self, dim: int, base: float = 10000.0, scale_base: Optional[float] = None, interleaved: bool = False,
        pos_idx_in_fp32: bool = True, device: Any = None,
    ) -> None:
        super().__init__()
        if isinstance(dim, bool) or not isinstance(dim, int) or dim < 2 or dim % 2:
            raise value_error("RotaryEmbedding", "dim", "must be an even number from 2", dim)
        self.dim, self.base, self.scale_base = dim, float(base), scale_base
        self.interleaved, self.pos_idx_in_fp32 = interleaved, pos_idx_in_fp32
        self.register_buffer("inv_freq", torch.empty(dim // 2, dtype=torch.float32, device=device), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill ``inv_freq``; call it after ``to_empty`` on a meta-device module."""
        self.inv_freq.copy_(_rates(self.dim // 2, self.base, self.inv_freq.device))

    def extra_repr(self) -> str:
        """Sizes and settings, for ``repr``."""
        return (f"dim={self.dim}, base={self.base}, scale_base={self.scale_base}, interleaved={self.interleaved}, "
                f"pos_idx_in_fp32={self.pos_idx_in_fp32}")

    def forward(
        self, q: torch.Tensor, k: torch.Tensor, seqlen_offset: Offset = 0, cu_seqlens: Optional[torch.Tensor] = None,
        max_seqlen: Optional[int] = None, chunk_indices: Optional[torch.Tensor] = None,
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Rotate.

        Args:
            q: ``[B, T, H, D]``.
            k: ``[B, T, H_k, D]``.
            seqlen_offset: position of the first tokens; a number, or ``[N]`` integers. Tokens before position 0, such
                as padding on the left, become zero.
            cu_seqlens: ``[N + 1]`` offsets of packed sequences, each of which begins at position 0.
            max_seqlen: with ``scale_base`` the length whose middle position is not scaled; that of this call by
                default.
            chunk_indices: accepted and not needed.

        Returns:
            q and k, rotated, in their dtypes.

        Raises:
            ValueError: a head of fewer channels than ``dim``, or offsets that do not fit.
        """
        _check_heads("RotaryEmbedding", "q", q, self.dim)
        _check_heads("RotaryEmbedding", "k", k, self.dim, q)
        place = _places("RotaryEmbedding", q, seqlen_offset, cu_seqlens)
        wide = torch.float64 if has_float64(q.device) else torch.float32
        exact = place if self.pos_idx_in_fp32 else place.to(self.inv_freq.dtype)
        angles = exact.to(wide).unsqueeze(-1) * _rates(self.dim // 2, self.base, q.device)
        grow: Any = 1.0
        if self.scale_base is not None:
            length = max_seqlen
            if length is None:
                length = q.shape[1] + (seqlen_offset if isinstance(seqlen_offset, int) else 0)
            scale = (torch.arange(0, self.dim, 2, device=q.device, dtype=wide) + 0.4 * self.dim) / (1.4 * self.dim)
            grow = scale ** ((place.to(wide) - length // 2) / self.scale_base).unsqueeze(-1)
        cos, sin = angles.cos(), angles.sin()
        rotated = (_rotate(q, cos * grow, sin * grow, self.interleaved), _rotate(k, cos / grow, sin / grow,
                                                                                self.interleaved))
        return _none_before(rotated[0], place), _none_before(rotated[1], place)


def rotary_embedding(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool = False, inplace: bool = False,
    seqlen_offsets: Offset = 0, cu_seqlens: Optional[torch.Tensor] = None,
    chunk_indices: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """Rotate the first R channels of each head by tables of cosines and sines.

    Args:
        x: ``[B, T, H, D]`` queries or keys.
        cos, sin: ``[positions, R / 2]``. interleaved: pairs are neighbouring channels, not one from each half.
        inplace: write the result into x; not with autograd.
        seqlen_offsets: position of the first tokens; a number, or ``[N]`` integers.
        cu_seqlens: ``[N + 1]`` offsets of packed sequences, each of which begins at position 0.
        chunk_indices: accepted and not needed.

    Returns:
        ``[B, T, H, D]`` in the dtype of x.

    Raises:
        ValueError: tables that do not fit, or that are too short.

    Example:
        >>> x, table = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2), torch.tensor([[0.0]])
        >>> rotary_embedding(x, table, table + 1).flatten().tolist()
        [0.0, 1.0]
    """
    who = "rotary_embedding"
    _check_heads(who, "x", x, 0)
    for name, table in (("cos", cos), ("sin", sin)):
        check_tensor(who, name, table, x)
        if not table.is_floating_point():
            raise value_error(who, name, "must be floating point", table.dtype)
    if cos.dim() != 2 or cos.shape != sin.shape or not 2 <= 2 * cos.shape[1] <= x.shape[-1]:
        rule = f"must be a table [places, R / 2] with R from 2 up to D={x.shape[-1]}, as sin"
        raise value_error(who, "cos", rule, (tuple(cos.shape), tuple(sin.shape)))
    place = _places(who, x, seqlen_offsets, cu_seqlens)
    if place.numel() and not tracing(place) and int(place.max()) >= cos.shape[0]:
        raise value_error(who, "cos", f"must have a row for place {int(place.max())}", f"{cos.shape[0]} rows")
    row = place.clamp(min=0)
    y = _none_before(_rotate(x, cos[row], sin[row], interleaved), place)
    return x.copy_(y) if inplace else y


def rotate_by_position(x: torch.Tensor, positions: torch.Tensor, theta: float = 10000.0) -> torch.Tensor:
    """Rotate channel ``i`` and channel ``i + D/2`` of each head by ``position * theta^(-2i/D)``.

    Angles are float64, so that far positions are as exact as near ones; the result is rounded once.

    Args:
        x: ``[B, T, H, D]`` queries or keys, D even.
        positions: ``[T]`` or ``[B, T]`` integers.
        theta: the slowest rotation is by about ``1 / theta`` for each token.

    Returns:
        ``[B, T, H, D]`` in the dtype of x.

    Example:
        >>> x = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
        >>> rotate_by_position(x, torch.tensor([0])).flatten().tolist()
        [1.0, 0.0]
    """
    rates = _rates(x.shape[-1] // 2, theta, x.device)
    angles = positions.to(rates.dtype).unsqueeze(-1) * rates
    return _rotate(x, angles.cos(), angles.sin(), False)


def _rates(half: int, base: float, device: torch.device) -> torch.Tensor:
    """The angle of each of ``half`` pairs for one token."""
    exact = torch.float64 if has_float64(device) else torch.float32
    return base ** (torch.arange(half, device=device, dtype=exact) / -half)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, interleaved: bool) -> torch.Tensor:
    """Rotate by ``cos, sin [T, R / 2]`` or ``[B, T, R / 2]``; channels from R on are not changed."""
    wide, size = accumulation_dtype(x), 2 * cos.shape[-1]
    cos, sin = cos.to(wide).unsqueeze(-2), sin.to(wide).unsqueeze(-2)
    turned = x[..., :size].to(wide)
    if interleaved:
        first, second = turned[..., ::2], turned[..., 1::2]
        pair = torch.stack([first * cos - second * sin, second * cos + first * sin], -1).flatten(-2)
    else:
        first, second = turned.split(size // 2, -1)
        pair = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    pair = pair.to(x.dtype)
    return pair if size == x.shape[-1] else torch.cat([pair, x[..., size:]], -1)


def _none_before(y: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Set positions before the first to zero."""
    return torch.where((place >= 0)[..., None, None], y, y.new_zeros(()))


def _check_heads(who: str, field: str, x: Any, dim: int, beside: Optional[torch.Tensor] = None) -> None:
    """Refuse a tensor that is not ``[B, T, H, D]`` with at least ``dim`` channels, and B and T of the tensor
    ``beside``."""
    check_tensor(who, field, x, beside, "q")
    if x.dim() != 4 or x.shape[3] < dim or not x.is_floating_point():
        rule = f"must be floating point [B, T, H, D] with D from {dim}"
        raise value_error(who, field, rule, f"{x.dtype} {tuple(x.shape)}")
    if beside is not None and x.shape[:2] != beside.shape[:2]:
        raise value_error(who, field, f"must have the batch and length of q, {tuple(beside.shape[:2])}", tuple(x.shape))


def _places(who: str, x: torch.Tensor, offset: Offset, cu_seqlens: Optional[torch.Tensor]) -> torch.Tensor:
    """``[T]`` or ``[B, T]`` int64."""
    batch, tokens = x.shape[:2]
    rows = batch if cu_seqlens is None else check_cu_seqlens(who, cu_seqlens, batch, tokens, x)
    place = torch.arange(tokens, device=x.device)
    if isinstance(offset, torch.Tensor):
        if offset.dtype not in INTEGERS or tuple(offset.shape) != (rows,):
            got = f"{offset.dtype} {list(offset.shape)}"
            raise value_error(who, "seqlen_offset", f"must be a number or integers [{rows}]", got)
        if offset.is_meta and not x.is_meta:
            raise value_error(who, "seqlen_offset", "must have values", "a tensor on the device meta")
    elif not tracing() and (
        isinstance(offset, bool) or not isinstance(offset, int) or abs(offset) >= FARTHEST
    ):
        raise value_error(who, "seqlen_offset", f"must be a number or integers [{rows}]", offset)
    first = offset.to(x.device, torch.int64) if isinstance(offset, torch.Tensor) else offset
    if cu_seqlens is None:
        return place + (first[:, None] if isinstance(first, torch.Tensor) else first)
    begin = cu_seqlens.to(x.device, torch.int64)
    row = segments_of(begin, tokens).clamp(max=max(rows - 1, 0))
    return place - begin[row] + (first[row] if isinstance(first, torch.Tensor) else first)
