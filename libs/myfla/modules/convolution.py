"""`ShortConvolution`: the causal depthwise convolution before the recurrence, with a cache and packed sequences."""

import warnings
from typing import Any, Optional, Tuple

import torch
from torch import nn

from myfla.modules.conv_functional import (
    ACTIVATIONS,
    causal_conv1d,
    causal_conv1d_update,
    causal_conv1d_update_states,
    refuse_context,
    run,
    step,
)
from myfla.utils.errors import refuse_unknown, value_error
from myfla.utils.tensors import check_tensor
from myfla.utils.tracing import is_one, tracing

__all__ = ["ShortConvolution", "causal_conv1d", "causal_conv1d_update", "causal_conv1d_update_states"]

_BUILD = ("hidden_size", "kernel_size", "bias", "activation", "backend", "device", "dtype")
_CALL = ("x", "residual", "mask", "cache", "output_final_state", "cu_seqlens", "chunk_indices")


class ShortConvolution(nn.Conv1d):
    """Depthwise causal convolution over ``[B, T, D]``: ``y[t] = act(sum_s w[:, W-1-s] * x[t-s] + b) + residual[t]``.

    This is the short convolution of H3 and Mamba (Gu and Dao, 2023, arXiv 2312.00752), with the interface of the
    official layers. A subclass of ``nn.Conv1d`` only for its parameters: ``weight [D, 1, W]`` and ``bias [D]``.

    Args:
        hidden_size: D, channels in and out.
        kernel_size: W, how many tokens each output depends on, including its own.
        bias: whether to have one number for each channel, added before the activation.
        activation: ``"silu"`` or ``"swish"`` (the same), or None.
        backend: ``"triton"`` or ``"cuda"``; both mean this implementation.
        device, dtype: of the parameters.

    Raises:
        ValueError: a size below 1, an unknown activation or backend.
        TypeError: an unknown keyword.

    Example:
        >>> conv = ShortConvolution(8, 4)
        >>> y, cache = conv(torch.zeros(2, 5, 8), output_final_state=True)
        >>> y, cache = conv(torch.zeros(2, 1, 8), cache=cache, output_final_state=True)
        >>> tuple(y.shape), tuple(cache.shape)
        ((2, 1, 8), (2, 8, 4))
    """

    def __init__(
        self,
        hidden_size: int,
        kernel_size: int,
        bias: bool = False,
        activation: Optional[str] = "silu",
        backend: Optional[str] = "triton",
        device: Optional[torch.device] = None,
        dtype: Optional[torch.dtype] = None,
        **kwargs: Any,
    ) -> None:
        refuse_unknown("ShortConvolution", kwargs, _BUILD, inert=("use_fast_conv1d",))
        if kwargs:
            warnings.warn("ShortConvolution: use_fast_conv1d is an old official name and changes nothing", stacklevel=2)
        for name, size in (("hidden_size", hidden_size), ("kernel_size", kernel_size)):
            if size < 1:
                raise value_error("ShortConvolution", name, "must be at least 1", size)
        if activation not in ACTIVATIONS:
            raise value_error("ShortConvolution", "activation", f"must be one of {list(ACTIVATIONS)}", activation)
        if backend not in ("triton", "cuda"):
            raise value_error("ShortConvolution", "backend", "must be one of ['triton', 'cuda']", backend)
        super().__init__(
            hidden_size, hidden_size, kernel_size, padding=kernel_size - 1, groups=hidden_size, bias=bias,
            device=device, dtype=dtype,
        )
        self.hidden_size = hidden_size
        self.activation = activation
        self.backend = backend

    def forward(  # type: ignore[override]  # a Conv1d for its parameters only, as the official one
        self,
        x: torch.Tensor,
        residual: Optional[torch.Tensor] = None,
        mask: Optional[torch.Tensor] = None,
        cache: Optional[torch.Tensor] = None,
        output_final_state: bool = False,
        cu_seqlens: Optional[torch.Tensor] = None,
        chunk_indices: Optional[torch.Tensor] = None,
        **kwargs: Any,
    ) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
        """Convolve sequences, or continue them.

        Args:
            x: ``[B, T, D]``; packed ``[1, T, D]`` with ``cu_seqlens``.
            residual: shaped as x; added after the activation.
            mask: ``[B, T]`` of 0 and 1; inputs at a 0 are replaced by zero, NaN included.
            cache: ``[N, D, W]``, the last W inputs of each sequence, newest last. It is not changed.
            output_final_state: also return the cache after the last token.
            cu_seqlens: ``[N + 1]`` int32 or int64, where each packed sequence starts, and the end.
            chunk_indices: accepted for the official signature.

        Returns:
            ``y`` shaped as x, and the new cache or None. Its dtype is that of x, or that of the cache if it was
            continued by one token with autograd off.

        Raises:
            ValueError: shapes that do not fit, or both ``mask`` and ``cu_seqlens``.
            TypeError: an unknown keyword.
        """
        who = type(self).__name__
        if kwargs:
            refuse_unknown(who, kwargs, _CALL, inert=("cu_seqlens_cpu", "cp_context"))
            refuse_context(who, kwargs.get("cp_context"))
        check_tensor(who, "x", x, self.weight, "the weight")
        if x.dim() != 3:
            raise value_error(who, "x", "must have shape [B, T, D]", tuple(x.shape))
        if mask is not None:
            x = self._masked(who, x, mask, cu_seqlens)
        if self._is_step(x, cu_seqlens):
            return self.step(x, residual, cache, output_final_state, cu_seqlens)
        weight, bias = self.weight.squeeze(1), self.bias
        return run(who, x, weight, bias, residual, cache, output_final_state, self.activation, cu_seqlens, "cache")

    def step(
        self,
        x: torch.Tensor,
        residual: Optional[torch.Tensor],
        cache: Optional[torch.Tensor],
        output_final_state: bool = False,
        cu_seqlens: Optional[torch.Tensor] = None,
    ) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
        """One token for each sequence.

        Args:
            x: ``[N, 1, D]``, or ``[1, N, D]`` with ``cu_seqlens``.
            residual: added to the result, or None.
            cache: ``[N, D, W]``, the last W inputs; None for the beginning of sequences.
            output_final_state: whether to return the new cache.
            cu_seqlens: ``[N + 1]`` of packed sequences of one token each.

        Returns:
            The output, with the shape of x, and the new cache or None.
        """
        who, weight = type(self).__name__, self.weight.squeeze(1)
        y, cache = step(who, x, cache, residual, weight, self.bias, self.activation)
        return y, cache if output_final_state else None

    def extra_repr(self) -> str:
        """Size, kernel and activation, for ``repr``."""
        bias = "" if self.bias is not None else ", bias=False"
        return f"{self.hidden_size}, kernel_size={self.kernel_size[0]}, activation={self.activation}{bias}"

    @property
    def state_size(self) -> int:
        """Numbers that the cache holds for one sequence, D * W."""
        return self.hidden_size * self.kernel_size[0]

    @staticmethod
    def _masked(who: str, x: torch.Tensor, mask: torch.Tensor, cu_seqlens: Optional[torch.Tensor]) -> torch.Tensor:
        if cu_seqlens is not None:
            raise value_error(who, "mask", "and cu_seqlens cannot both be given", "both", "leave one of them out")
        check_tensor(who, "mask", mask, x)
        if mask.shape != x.shape[:2]:
            raise value_error(who, "mask", f"must have shape [B, T] = {tuple(x.shape[:2])}", tuple(mask.shape))
        return x.masked_fill((mask == 0).unsqueeze(-1), 0)

    @staticmethod
    def _is_step(x: torch.Tensor, cu_seqlens: Optional[torch.Tensor]) -> bool:
        if torch.is_grad_enabled() or (cu_seqlens is not None and tracing(x)):
            return False
        if cu_seqlens is None:
            return is_one(x.shape[1])
        N = x.shape[1]
        if x.shape[0] != 1 or N == 0 or not isinstance(cu_seqlens, torch.Tensor) or cu_seqlens.shape != (N + 1,):
            return False
        return bool((cu_seqlens == torch.arange(N + 1, device=cu_seqlens.device)).all())
