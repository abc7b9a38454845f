"""State weaving: each layer starts from the final state of the layer before it.

TempoPFN (arXiv 2510.25502): ``H_0 of layer i + 1 = (learned H_0 of layer i + 1) + (last H of layer i)``. From the
second layer on, every token thus depends on the complete sequence, at the cost of one direction. This works for
complete sequences only: in a stream the last state of a layer is never known.
"""

from typing import Any, List, Optional, Tuple

import torch
import torch.nn as nn

from cfg.encoder import EncoderConfig
from encoders.blocks import StackCall
from encoders.contract import BlockBuilder
from myfla.models.utils import Cache
from myfla.utils.dtypes import accumulation_dtype
from myfla.utils.errors import value_error

__all__ = ["Pass", "StateWeaving", "build_weaving"]


class StateWeaving(nn.Module):
    """The learned initial states of one direction.

    Args:
        layers: number of layers.
        shape: of one layer's recurrent state, ``(HV, K, V)``.
        device, dtype: of the parameter ``initial [layers, HV, K, V]``.
    """

    def __init__(self, layers: int, shape: Tuple[int, ...], device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.initial = nn.Parameter(torch.empty(layers, *shape, device=device, dtype=dtype))
        setattr(self.initial, "_no_weight_decay", True)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal with standard deviation 1 / K, as in the paper's code."""
        if not self.initial.is_meta:
            nn.init.normal_(self.initial, std=1.0 / self.initial.shape[-2])

    def seed(self, layer_idx: int, before: Optional[torch.Tensor], like: torch.Tensor, batch: int) -> torch.Tensor:
        """The initial state ``[N, HV, K, V]`` of a layer.

        Args:
            layer_idx: the layer.
            before: the last state of the layer before it; None for the first layer.
            like: the layer's input, for its dtype.
            batch: N.
        """
        own = self.initial[layer_idx].to(accumulation_dtype(like)).expand(batch, *self.initial.shape[1:])
        return own if before is None else own + before


class Pass:
    """One pass through the blocks, which pass on a carry and, with weaving, their last states.

    Args:
        call: see `StackCall`.
        weaving: the weaving, or None. With it, ``call`` must have no cache; the layers use one of this pass.
        batch: N, the number of sequences.
    """

    def __init__(self, call: StackCall, weaving: Optional[StateWeaving], batch: int) -> None:
        self._call = call if weaving is None else call._replace(cache=Cache(), use_cache=True)
        self._weaving, self._batch = weaving, batch
        self._carry: Any = None
        self._last: Optional[torch.Tensor] = None

    def __call__(self, layer_idx: int, block: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
        """The block of that number."""
        if self._weaving is not None and self._call.cache is not None:
            first = self._weaving.seed(layer_idx, self._last, hidden, self._batch)
            self._call.cache.update(recurrent_state=first, layer_idx=layer_idx, offset=0)
        hidden, self._carry = block(hidden, self._call, self._carry)
        if self._weaving is not None:
            self._last = self._call.state(layer_idx)["recurrent_state"]
        return hidden


def build_weaving(strategy: BlockBuilder, config: EncoderConfig, device: Any = None,
                  dtype: Any = None) -> Optional[StateWeaving]:
    """The initial states that ``config.state_weaving`` asks for, or None.

    Raises:
        ValueError: the strategy's layers have no recurrent state, or states of different shapes.
    """
    if not config.state_weaving:
        return None
    shapes: List[Tuple[int, ...]] = []
    for i in range(config.num_layers):
        shape = strategy.state_shape(config, i)
        if shape is None:
            raise value_error("build_encoder", "encoder.state_weaving", f"must be false for encoder {config.name!r}",
                              True, f"its strategy names no state for layer {i} (EncoderStrategy.state_shape)")
        shapes.append(shape)
        if shape != shapes[0]:
            raise value_error("build_encoder", "encoder.state_weaving", "needs states of one shape in all layers", True,
                              f"layer 0 has {shapes[0]}, layer {i} has {shape}")
    return StateWeaving(config.num_layers, shapes[0], device=device, dtype=dtype)
