"""Visible uninitialised memory: what ``torch.empty`` and similar functions give is NaN, or the largest integer."""

import functools

import torch

MAKERS = ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty"))


def poisoned(make):
    """``make`` with its result filled."""

    @functools.wraps(make)
    def made(*args, **kwargs):
        return fill(make(*args, **kwargs))

    return made


def fill(tensor):
    """Fill a tensor with what no computation can use unnoticed."""
    if tensor.device.type != "meta" and type(tensor) is torch.Tensor and tensor.numel():
        with torch.no_grad():
            if tensor.is_floating_point() or tensor.is_complex():
                tensor.fill_(float("nan"))
            elif tensor.dtype != torch.bool:
                tensor.fill_(torch.iinfo(tensor.dtype).max)
    return tensor


def poison(monkeypatch):
    """Until the end of the test."""
    for owner, name in MAKERS:
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))
