"""Batch normalisation over the real steps of uneven sequences."""

from typing import Optional

import torch
import torch.nn as nn
import torch.nn.functional as F

__all__ = ["StepBatchNorm"]


class StepBatchNorm(nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` whose statistics are those of real steps; what stands in a pad is never counted.

    In training, mean and variance of each channel over all real steps of the batch; in evaluation the running averages
    of those, so that a step's result depends on that step alone. A batch of fewer than two real steps has no variance:
    it is normalised by the running averages in training too, and leaves them as they are. Each process of several has
    the statistics of its own share of the batch, as usual.

    Example:
        >>> norm, x = StepBatchNorm(1).train(), torch.tensor([[[1.0, 3.0, 99.0]]])
        >>> norm(x, torch.tensor([[True, True, False]]))[0, 0, :2].tolist()
        [-0.9999949932098389, 0.9999949932098389]
    """

    def forward(self, x: torch.Tensor, real: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Normalise each channel.

        Args:
            x: ``[N, C, T]``, finite in pads too.
            real: ``[N, T]`` bool, True at real steps; None if all are.

        Returns:
            as ``x``; with ``real``, in training, zeros at padding.
        """
        if not self.training:
            return super().forward(x)
        tokens = x.transpose(1, 2).reshape(-1, x.shape[1]) if real is None else x.transpose(1, 2)[real]
        if len(tokens) < 2:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps)
        if real is None:
            return super().forward(x)
        rows = x.new_zeros(x.shape[0], x.shape[2], x.shape[1], dtype=tokens.dtype)
        return rows.masked_scatter(real[..., None], super().forward(tokens)).transpose(1, 2)
