"""Encoders of GRU and LSTM layers in the same blocks, for comparison."""

from typing import Any, Tuple, Type, Union

import torch
import torch.nn as nn
from torch.nn.utils.rnn import pack_sequence, unpack_sequence

from cfg.encoder import GRUEncoderConfig, LSTMEncoderConfig, RNNEncoderConfig
from encoders.blocks import StackCall
from encoders.strategy import EncoderStrategy

__all__ = ["GRUEncoderStrategy", "LSTMEncoderStrategy", "RNNMixer"]

State = Tuple[torch.Tensor, ...]


class RNNMixer(nn.Module):
    """``nn.GRU`` or ``nn.LSTM`` along time, and a projection back to the width of the stack.

    Args:
        kind: ``nn.GRU`` or ``nn.LSTM``.
        hidden_size: channels in and out.
        state_size: width of the recurrent state.
        layer_idx: its slot in a cache; ``recurrent_state`` there is ``(h,)`` or ``(h, c)``, each ``[N, state_size]``.
    """

    def __init__(self, kind: Type[Union[nn.GRU, nn.LSTM]], hidden_size: int, state_size: int, layer_idx: int,
                 device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        self.hidden_size, self.state_size, self.layer_idx = hidden_size, state_size, layer_idx
        self.states = 2 if kind is nn.LSTM else 1
        self.rnn = kind(hidden_size, state_size, batch_first=True, device=device, dtype=dtype)
        self.out = nn.Linear(state_size, hidden_size, bias=False, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor, call: StackCall, carry: Any) -> Tuple[torch.Tensor, Any]:
        """Mix ``[B, T, D]``, or packed ``[1, total, D]``, starting from the states in the cache."""
        rows = x.shape[0] if call.cu_seqlens is None else call.cu_seqlens.numel() - 1
        before = call.state(self.layer_idx).get("recurrent_state")
        if before is None:
            before = (x.new_zeros(rows, self.state_size),) * self.states
        if call.cu_seqlens is None:
            y, after = self._dense(x, before)
        else:
            y, after = self._packed(x, before, call.cu_seqlens)
        call.keep(self.layer_idx, x, recurrent_state=after)
        return self.out(y), carry

    def _dense(self, x: torch.Tensor, before: State) -> Tuple[torch.Tensor, State]:
        if not x.shape[0] or not x.shape[1]:
            return x.new_zeros(x.shape[0], x.shape[1], self.state_size), before
        return self._run(x, before)

    def _packed(self, x: torch.Tensor, before: State, cu_seqlens: torch.Tensor) -> Tuple[torch.Tensor, State]:
        if x.is_meta:  # nothing tells where the sequences are; one has the same shapes
            return self._dense(x, tuple(state[:1] for state in before))[0], before
        lengths = cu_seqlens[1:] - cu_seqlens[:-1]
        rows = lengths.nonzero().flatten()  # PyTorch refuses an empty sequence
        if not rows.numel():
            return x.new_zeros(1, 0, self.state_size), before
        sequences = pack_sequence(x[0].split(lengths[rows].tolist()), enforce_sorted=False)
        packed, ended = self._run(sequences, tuple(state[rows] for state in before))
        after = tuple(state.index_copy(0, rows, end.to(state.dtype)) for state, end in zip(before, ended))
        return torch.cat(unpack_sequence(packed)).unsqueeze(0), after

    def _run(self, x: Any, before: State) -> Tuple[Any, State]:
        """PyTorch's own call: its states have a leading axis for layers, and a GRU's is no tuple."""
        states = tuple(state.unsqueeze(0) for state in before)
        y, after = self.rnn(x, states if self.states == 2 else states[0])
        after = after if self.states == 2 else (after,)
        return y, tuple(state.squeeze(0) for state in after)


class _RNNEncoderStrategy(EncoderStrategy[RNNEncoderConfig]):
    kind: Type[Union[nn.GRU, nn.LSTM]]

    def build_mixer(self, config: RNNEncoderConfig, layer_idx: int, device: Any = None,
                    dtype: Any = None) -> nn.Module:
        size = config.state_size or config.hidden_size
        return RNNMixer(self.kind, config.hidden_size, size, layer_idx, device=device, dtype=dtype)


class GRUEncoderStrategy(_RNNEncoderStrategy):
    """``nn.GRU`` (arXiv 1406.1078) in the stack's residual blocks.

    Example:
        >>> strategy = GRUEncoderStrategy()
        >>> strategy.build(strategy.config_class(input_size=3))(torch.randn(1, 4, 3)).embedding.shape
        torch.Size([1, 64])
    """

    name = "gru"
    config_class = GRUEncoderConfig
    kind = nn.GRU


class LSTMEncoderStrategy(_RNNEncoderStrategy):
    """``nn.LSTM`` (Hochreiter and Schmidhuber 1997) in the stack's residual blocks.

    Example:
        >>> strategy = LSTMEncoderStrategy()
        >>> strategy.build(strategy.config_class(input_size=3))(torch.randn(1, 4, 3)).embedding.shape
        torch.Size([1, 64])
    """

    name = "lstm"
    config_class = LSTMEncoderConfig
    kind = nn.LSTM
