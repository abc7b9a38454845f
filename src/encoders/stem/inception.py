"""A front end that looks through windows of several widths at once, after InceptionTime (arXiv 1909.04939).

Three blocks. In each, a 1x1 convolution makes the channels few, convolutions of three widths and a pooled branch read
them, their channels stand side by side, batch norm; the block's input is added, then ReLU::

    y = relu(norm([conv_4(b x), conv_9(b x), conv_19(b x), p maxpool_3(x)]) + r x)

Of a whole sequence the windows are centred, and the last blocks halve its length. The causal form looks back only:
the steps that a window still needs are its state, which stands in a cache behind the layers' states. Zeros stand in
front of a sequence, and behind it in the centred form.
"""

import functools
from typing import Any, List, Optional, Tuple

import torch
import torch.nn as nn
import torch.nn.functional as F

from encoders.batch import Layout
from encoders.blocks import StackCall
from encoders.stem.batch_norm import StepBatchNorm
from encoders.stem.rows import inside, pack_rows, repack_rows, shorten, shortened, to_shorten, trim

__all__ = ["InceptionBlock", "InceptionStem"]

BLOCKS = 3
POOLED = 3  # steps that the pooled branch looks at
Taps = Tuple[torch.Tensor, torch.Tensor]


class InceptionStem(nn.Module):
    """The blocks of the front end.

    Args:
        input_size: channels of the data.
        hidden_size: channels of the output, and between the blocks; at least 4.
        stride: how many times shorter sequences become: 1, 2, 4 or 8; 1 in the causal form.
        kernel_size: steps of the widest window; the others are a half and a quarter as wide.
        causal: windows end at their step.
        slot: of a cache, where the causal form keeps its state.
        eps: of the norms.
        device, dtype: for every parameter.

    Example:
        >>> from encoders.batch import make_layout
        >>> x = torch.randn(2, 50, 3)
        >>> hidden, layout = InceptionStem(3, 8, 4, 19, causal=False)(x, make_layout(x))
        >>> hidden.shape, layout.lengths.tolist()
        (torch.Size([2, 13, 8]), [13, 13])
    """

    def __init__(self, input_size: int, hidden_size: int, stride: int, kernel_size: int, causal: bool, slot: int = 0,
                 eps: float = 1e-5, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.causal, self.slot, self.stride, self.kernel_size = causal, slot, stride, kernel_size
        halvings = stride.bit_length() - 1
        self.strides = [1] * (BLOCKS - halvings) + [2] * halvings
        sizes = [input_size] + [hidden_size] * BLOCKS
        self.blocks = nn.ModuleList(
            InceptionBlock(before, after, kernel_size, stride, causal, eps, device=device, dtype=dtype)
            for before, after, stride in zip(sizes, sizes[1:], self.strides)
        )

    @property
    def weight(self) -> torch.Tensor:
        """The first weight that meets the data; its device and dtype are those the data must have."""
        return self.blocks[0].get_parameter("pooled.weight")

    @property
    def reach(self) -> int:
        """How many steps, its own included, depend on a step in the causal form."""
        return 1 + BLOCKS * (max(self.kernel_size, POOLED) - 1)

    def forward(self, x: torch.Tensor, layout: Layout,
                call: Optional[StackCall] = None) -> Tuple[torch.Tensor, Layout]:
        """Pass every sequence through the blocks.

        Args:
            x: what the layout packs: ``[B, T, input_size]``, or ``[1, total, input_size]``.
            layout: where the sequences are.
            call: with a cache, the causal form continues from its slot and leaves its new state there.

        Returns:
            the output, packed or dense as ``x`` was, and its layout, which is the given one if no length changes.
        """
        given, lengths, call = x, layout.lengths, call or StackCall()
        rows, ragged = to_shorten(x, layout, self.stride)
        rows = rows.transpose(1, 2)
        real = inside(lengths, rows.shape[2]) if ragged else None
        before: Tuple[torch.Tensor, ...] = call.state(self.slot).get("conv_state") or ()
        after: List[torch.Tensor] = []
        batch = rows.shape[0]
        for i, (block, stride) in enumerate(zip(self.blocks, self.strides)):
            taps = (before[2 * i][:batch], before[2 * i + 1][:batch]) if before else None
            rows, new = block(rows, lengths, real, taps)
            after += new
            if stride > 1:
                lengths = shorten(lengths, stride)
                real = None if real is None else inside(lengths, rows.shape[2])
        if self.causal and call.use_cache:
            if layout.real is not None:  # nothing reads the row of the pads
                after = [torch.cat([t, t.new_zeros(1, *t.shape[1:])]) for t in after]
            call.keep(self.slot, given, conv_state=tuple(after))
        rows = rows.transpose(1, 2)
        if self.stride == 1:
            return repack_rows(rows, layout), layout
        return pack_rows(trim(rows, layout, self.stride), lengths, layout)


class InceptionBlock(nn.Module):
    """One block; see the module's equation.

    Args:
        input_size, output_size: channels.
        kernel_size: steps of the widest window.
        stride: 1 or 2.
        causal: windows end at their step.
        eps: of the norm.
        device, dtype: for every parameter.
    """

    def __init__(self, input_size: int, output_size: int, kernel_size: int, stride: int, causal: bool,
                 eps: float = 1e-5, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        made = dict(device=device, dtype=dtype)
        kernels = self.kernels = [kernel_size, max(1, (kernel_size - 1) // 2), max(1, (kernel_size - 1) // 4)]
        branch = output_size // (len(kernels) + 1)
        self.stride, self.causal, self.output_size, self.widest = stride, causal, output_size, kernel_size
        self.narrow = nn.Conv1d(input_size, branch, 1, bias=False, **made) if input_size > branch else nn.Identity()
        self.width = min(input_size, branch)
        self.convs = nn.ModuleList(nn.Conv1d(self.width, branch, k, stride, bias=False, **made) for k in kernels)
        self.pooled = nn.Conv1d(input_size, output_size - branch * len(kernels), 1, bias=False, **made)
        self.norm = StepBatchNorm(output_size, eps=eps, **made)
        self.across = None
        if stride > 1 or input_size != output_size:
            self.across = nn.Conv1d(input_size, output_size, 1, stride, bias=False, **made)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor, real: Optional[torch.Tensor],
                taps: Optional[Taps] = None) -> Tuple[torch.Tensor, List[torch.Tensor]]:
        """One block.

        Args:
            x: ``[N, C, T]``, zeros behind each sequence.
            lengths: ``[N]``.
            real: ``[N, T]`` bool, True inside of the sequences; None if there is nothing behind them.
            taps: what the call before returned; None at the beginning.

        Returns:
            ``(y, taps)``: ``[N, output_size, ceil(T / stride)]``, zeros behind each sequence, and the last steps of
            what the windows and the pooled branch read; none in the centred form.
        """
        time = x.shape[2]
        narrow = self.narrow(x) if x.numel() else x[:, : self.width]
        kept: List[torch.Tensor] = []
        if self.causal:
            taps = taps or (narrow.new_zeros(x.shape[0], narrow.shape[1], self.widest - 1),
                            x.new_zeros(x.shape[0], x.shape[1], POOLED - 1))
            wide, pooled = (torch.cat([old.to(new.dtype), new], 2) for old, new in zip(taps, (narrow, x)))
            kept = [_last(wide, lengths, self.widest - 1), _last(pooled, lengths, POOLED - 1)]
        else:
            wide, pooled = _centred(narrow, self.widest), _centred(x, POOLED)
        if not x.numel():
            return x.new_zeros(x.shape[0], self.output_size, shortened(time, self.stride)), kept
        parts = [conv(self._window(wide, kernel, time)) for conv, kernel in zip(self.convs, self.kernels)]
        # As max_pool1d, of which exporters make a graph of one length.
        seen = [pooled[:, :, first : first + time : self.stride] for first in range(POOLED)]
        parts.append(self.pooled(functools.reduce(torch.maximum, seen)))
        left = real if real is None or self.stride == 1 else real[:, :: self.stride]
        y = F.relu(self.norm(torch.cat(parts, 1), left) + (x if self.across is None else self.across(x)))
        return y if left is None else torch.where(left[:, None], y, y.new_zeros(())), kept

    def _window(self, wide: torch.Tensor, kernel: int, time: int) -> torch.Tensor:
        """The part of ``wide``, which serves the widest window, that a narrower one reads."""
        first = self.widest - kernel if self.causal else (self.widest - 1) // 2 - (kernel - 1) // 2
        return wide[:, :, first : first + time + kernel - 1]


def _centred(x: torch.Tensor, kernel: int) -> torch.Tensor:
    """With zeros on both sides, for a window of that width around each step."""
    before = (kernel - 1) // 2
    return F.pad(x, (before, kernel - 1 - before))


def _last(x: torch.Tensor, lengths: torch.Tensor, count: int) -> torch.Tensor:
    """The last ``count`` real steps of each row of ``[N, C, count + T]``, whose real steps are ``count + lengths``."""
    index = lengths[:, None] + torch.arange(count, device=x.device)
    return x.gather(2, index[:, None].expand(-1, x.shape[1], -1))
