"""A front end that shortens sequences: some steps of real-valued input become one step of the stack.

``patch`` folds ``stride`` steps into one and projects them. ``conv`` halves the sequence log2(stride) times: each time
a convolution that looks back ``kernel_size`` steps, RMSNorm, GELU. Either way a sequence of L steps leaves with
``ceil(L / stride)``; the end of the sequence closes the last one, as if zeros followed. That is also why there is no
streaming with a stem: in a stream that end is unknown.
"""

import math
from typing import Any, List, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from encoders.batch import Layout
from encoders.stem.rows import inside, pack_rows, shorten, shortened, to_shorten, trim
from myfla.modules.layernorm import RMSNorm

__all__ = ["Stem"]


class Stem(nn.Module):
    """The layers of a front end, each a causal convolution over steps.

    Args:
        input_size: channels of the data.
        hidden_size: channels of the output, and between the layers.
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
        lengths, stride = layout.lengths, math.prod(self.strides)
        x, ragged = to_shorten(x, layout, stride)
        for i, (conv, each) in enumerate(zip(self.convs, self.strides)):
            steps = shortened(x.shape[1], each)
            if not x.shape[0] or not steps:
                x = x.new_zeros(x.shape[0], steps, self.hidden_size)
            else:
                missing = steps * each - x.shape[1]
                x = conv(F.pad(x.transpose(1, 2), (self.kernel_size - each, missing))).transpose(1, 2)
            lengths = shorten(lengths, each)
            if self.norms:
                x = F.gelu(self.norms[i](x))
            if ragged and i + 1 < len(self.convs):  # what follows a sequence's end stays zero
                x = torch.where(inside(lengths, steps)[..., None], x, x.new_zeros(()))
        return pack_rows(trim(x, layout, stride), lengths, layout)
