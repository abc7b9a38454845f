"""A front end that shortens sequences: some steps of real-valued input become one step of the stack.

``patch`` folds ``stride`` steps into one and projects them. ``conv`` halves the sequence log2(stride) times: each time
a convolution that looks back ``kernel_size`` steps, RMSNorm, GELU. Either way a sequence of L steps leaves with
``ceil(L / stride)``; the end of the sequence closes the last one, as if zeros followed. That is also why there is no
streaming with a stem: in a stream nobody knows that end.
"""

from typing import Any, Dict, List, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from cfg.encoder import EncoderConfig
from encoders.batch import Layout, from_mask
from myfla.modules.layernorm import RMSNorm
from myfla.utils.errors import value_error
from myfla.utils.rows import to_rows

__all__ = ["Stem", "build_stem", "shorten"]


class Stem(nn.Module):
    """The layers of a front end, each a causal convolution over steps.

    Args:
        input_size: channels of the data.
        hidden_size: channels that leave, and between the layers.
        strides: of each layer.
        kernel_size: steps that each layer looks back, at least its stride.
        activate: RMSNorm and GELU behind each convolution.
        eps: of the norms.
        device, dtype: for every parameter.

    Example:
        >>> from encoders.batch import make_layout
        >>> x = torch.randn(2, 5, 3)
        >>> hidden, layout = Stem(3, 8, strides=[2, 2], kernel_size=4)(x, make_layout(x))
        >>> hidden.shape, layout.lengths.tolist()
        (torch.Size([2, 2, 8]), [2, 2])
    """

    def __init__(self, input_size: int, hidden_size: int, strides: List[int], kernel_size: int, activate: bool = True,
                 eps: float = 1e-5, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.hidden_size, self.strides, self.kernel_size = hidden_size, list(strides), kernel_size
        made = dict(device=device, dtype=dtype)
        sizes = [input_size] + [hidden_size] * len(strides)
        self.convs = nn.ModuleList(
            nn.Conv1d(before, after, kernel_size, stride, **made)
            for before, after, stride in zip(sizes, sizes[1:], strides)
        )
        self.norms = nn.ModuleList(RMSNorm(hidden_size, eps=eps, **made) for _ in strides if activate)

    @property
    def weight(self) -> torch.Tensor:
        """The first weight that meets the data; its device and dtype are those the data must have."""
        return self.convs[0].get_parameter("weight")

    def forward(self, x: torch.Tensor, layout: Layout) -> Tuple[torch.Tensor, Layout]:
        """Shorten every sequence.

        Args:
            x: what the layout packs: ``[B, T, input_size]``, or ``[1, total, input_size]``.
            layout: where the sequences are.

        Returns:
            the shorter data, packed or dense as ``x`` was, and its layout.
        """
        packed = layout.cu_seqlens is not None
        if packed and x.is_meta:
            hint = "the length of what a stem returns depends on them; give a batch"
            raise value_error("encoder", "cu_seqlens", "must have values", "tensors on the device meta", hint)
        lengths = layout.lengths
        if layout.real is not None and layout.cu_seqlens is not None:  # recorded: pads follow as one more sequence
            x = to_rows(x, layout.cu_seqlens)[: layout.batch, : layout.time]
        elif packed:
            x = _pad(x, layout)
        for i, (conv, stride) in enumerate(zip(self.convs, self.strides)):
            steps = -(-x.shape[1] // stride)
            if not x.shape[0] or not steps:
                x = x.new_zeros(x.shape[0], steps, self.hidden_size)
            else:
                missing = steps * stride - x.shape[1]
                x = conv(F.pad(x.transpose(1, 2), (self.kernel_size - stride, missing))).transpose(1, 2)
            lengths = shorten(lengths, stride)
            if self.norms:
                x = F.gelu(self.norms[i](x))
            if packed and i + 1 < len(self.convs):  # what follows a sequence's end stays zero
                x = torch.where(_inside(lengths, x)[..., None], x, x.new_zeros(()))
        if not packed:
            return x, Layout(layout.batch, x.shape[1], lengths)
        inside = _inside(lengths, x)
        if layout.real is not None:
            short = from_mask(inside)
            return short.pack(x), short
        ends = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).int()
        positions = inside.flatten().nonzero().flatten()
        x = x.flatten(0, 1)[positions].unsqueeze(0)
        if layout.tokens is None:  # the caller packed, and gets it packed
            return x, Layout(1, x.shape[1], lengths, ends)
        return x, Layout(layout.batch, inside.shape[1], lengths, ends, positions)


def shorten(lengths: torch.Tensor, stride: int) -> torch.Tensor:
    """``ceil(lengths / stride)``."""
    return torch.div(lengths + (stride - 1), stride, rounding_mode="floor")


def build_stem(config: EncoderConfig, input_size: int, device: Any = None, dtype: Any = None) -> Stem:
    """The stem that ``config.stem`` names; it is not ``none``."""
    made: Dict[str, Any] = dict(eps=config.norm_eps, device=device, dtype=dtype)
    if config.stem == "patch":
        return Stem(input_size, config.hidden_size, [config.stem_stride], config.stem_stride, False, **made)
    halvings = config.stem_stride.bit_length() - 1
    return Stem(input_size, config.hidden_size, [2] * halvings or [1], config.stem_kernel, **made)


def _inside(lengths: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``[N, T]`` bool: which steps of ``x [N, T, ...]`` belong to their sequence."""
    return torch.arange(x.shape[1], device=x.device) < lengths[:, None]


def _pad(x: torch.Tensor, layout: Layout) -> torch.Tensor:
    """Packed ``[1, total, D]`` to ``[N, longest, D]`` with zeros behind each sequence."""
    longest = int(layout.lengths.max()) if layout.lengths.numel() else 0
    padded = x.new_zeros(layout.lengths.numel(), longest, x.shape[2])
    places = _inside(layout.lengths, padded).flatten().nonzero().flatten()
    return padded.flatten(0, 1).index_copy(0, places, x[0]).view_as(padded)
