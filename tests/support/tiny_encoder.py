"""A strategy that is easy to check by hand: its mixer adds up what came so far.

The sum also hands a carry down the stack, so that a test sees whether one block's carry reaches the next.
"""

from dataclasses import dataclass
from typing import Any, List, Tuple

import torch
import torch.nn as nn

from cfg.encoder import EncoderConfig
from cfg.validation import Fields
from encoders import EncoderStrategy, StackCall


@dataclass
class TinyConfig(EncoderConfig):
    name: str = "tiny"
    hidden_size: int = 6
    scale: float = 0.5

    def validate(self) -> None:
        super().validate()
        Fields(self, "encoder").number("scale", 0, 1)


class RunningSum(nn.Module):
    """``y_t = sum of scale * x_s for s <= t``, continued from the cache; the first layer's input is the carry."""

    def __init__(self, config: TinyConfig, layer_idx: int) -> None:
        super().__init__()
        self.scale, self.layer_idx = config.scale, layer_idx
        self.carries: List[Any] = []

    def forward(self, x: torch.Tensor, call: StackCall, carry: Any) -> Tuple[torch.Tensor, Any]:
        self.carries.append(carry)
        state = call.state(self.layer_idx).get("recurrent_state")
        parts = [x[i] for i in range(x.shape[0])]
        if call.cu_seqlens is not None:
            ends = call.cu_seqlens.tolist()
            parts = [x[0, start:end] for start, end in zip(ends, ends[1:])]
        starts = [0.0] * len(parts) if state is None else list(state[:, 0, 0])
        sums = [start + (self.scale * part).cumsum(0) for start, part in zip(starts, parts)]
        last = [s[-1] if len(s) else s.new_zeros(s.shape[1]) + start for s, start in zip(sums, starts)]
        if not parts:
            return x, carry
        call.keep(self.layer_idx, x, recurrent_state=torch.stack(last)[:, None, None])
        y = torch.stack(sums) if call.cu_seqlens is None else torch.cat(sums)[None]
        return y, (x if carry is None else carry)


class TinyStrategy(EncoderStrategy):
    name = "tiny"
    config_class = TinyConfig

    def build_mixer(self, config: TinyConfig, layer_idx: int, device: Any = None, dtype: Any = None) -> nn.Module:
        return RunningSum(config, layer_idx)
