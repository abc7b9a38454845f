"""The small bottleneck networks that make RWKV's data-dependent vectors."""

import math
from typing import Any, Optional, Tuple, Union, cast

import torch
from torch import nn

from myfla.layers.projections import project
from myfla.utils.errors import value_error

__all__ = ["LoRA"]

ACTIVATIONS = {None: nn.Identity, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU}


class LoRA(nn.Module):
    """``W_2 activation(W_1 x) + bias``, the bottleneck of RWKV-6 and RWKV-7 (arXiv 2404.05892, 2503.14456).

    At first ``W_1`` is zero and ``W_2`` orthogonal, so that the output is the bias.

    Args:
        input_dim: size of the input, in.
        output_dim: size of the output, out.
        low_rank_dim: size of the bottleneck, r.
        bias: whether there is a bias.
        activation: ``None``, ``"sigmoid"``, ``"tanh"`` or ``"relu"``.
        device, dtype: of the parameters.

    Parameters: ``lora.0.weight [r, in]``, ``lora.2.weight [out, r]``, ``lora.2.bias [out]``.

    Raises:
        ValueError: an unknown activation, or a size below 1.

    Example:
        >>> lora = LoRA(4, 2, 1)
        >>> lora.set_bias_value(0.5)
        >>> lora(torch.ones(1, 4)).tolist()
        [[0.5, 0.5]]
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        low_rank_dim: int,
        bias: Optional[bool] = True,
        activation: Optional[str] = "tanh",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise value_error("LoRA", "activation", "must be None, 'sigmoid', 'tanh' or 'relu'", activation)
        for name, size in (("input_dim", input_dim), ("output_dim", output_dim), ("low_rank_dim", low_rank_dim)):
            if size < 1:
                raise value_error("LoRA", name, "must be at least 1", size)
        self.input_dim, self.output_dim, self.low_rank_dim, self.bias = input_dim, output_dim, low_rank_dim, bias
        self.activation = ACTIVATIONS[activation]()
        self.lora = nn.Sequential(
            nn.Linear(input_dim, low_rank_dim, bias=False, device=device, dtype=dtype),
            self.activation,
            nn.Linear(low_rank_dim, output_dim, bias=bool(bias), device=device, dtype=dtype),
        )
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw the parameters again, as the official model does."""
        down, up = self._maps()
        nn.init.zeros_(down.weight)
        out, rank = up.weight.shape
        orthogonal_(up.weight, 0.1 * (math.sqrt(rank / out) if rank > out else 1.0))
        if up.bias is not None:
            nn.init.zeros_(up.bias)

    @torch.no_grad()
    def set_bias_value(self, value: Union[torch.Tensor, float]) -> None:
        """Set the bias: a tensor ``[out]`` or one number. Does nothing without a bias, or on the meta device."""
        bias = self._maps()[1].bias
        if bias is not None and not bias.is_meta:
            bias.copy_(torch.as_tensor(value, dtype=bias.dtype, device=bias.device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., in]`` to ``[..., out]``."""
        return project(self.lora, x)

    def _maps(self) -> Tuple[nn.Linear, nn.Linear]:
        return cast(nn.Linear, self.lora[0]), cast(nn.Linear, self.lora[2])

    def __repr__(self) -> str:
        text = f"input_dim={self.input_dim}, low_rank_dim={self.low_rank_dim}, output_dim={self.output_dim}"
        return f"{type(self).__name__}({text}{'' if self.bias else ', bias=False'})"


@torch.no_grad()
def orthogonal_(weight: torch.Tensor, gain: float = 1.0) -> None:
    """Fill a matrix with an orthogonal one times ``gain``; in float32 for half formats, which have no QR.

    Nothing happens on the meta device.
    """
    if weight.device.type == "meta":
        return
    exact = torch.empty(weight.shape, dtype=torch.promote_types(weight.dtype, torch.float32), device=weight.device)
    nn.init.orthogonal_(exact, gain=gain)
    weight.copy_(exact)
