"""The input layer: a projection of features or an embedding of token ids, and checks of the data."""

from typing import Any, Tuple

import torch
import torch.nn as nn

from cfg.encoder import EncoderConfig
from encoders.batch import Layout, make_layout
from encoders.blocks import StackCall
from encoders.stem import InceptionStem, Stem, build_stem
from myfla.utils.dtypes import autocast_enabled
from myfla.utils.errors import value_error
from myfla.utils.tracing import tracing

__all__ = ["alone", "build_input", "check_ids", "check_input", "enter", "input_weight"]

_IDS = (torch.int32, torch.int64)


def build_input(config: EncoderConfig, device: Any = None, dtype: Any = None) -> nn.Module:
    """``Linear(input_size, hidden_size)``, a stem, or ``Embedding(vocab_size, hidden_size)`` for token ids.

    Raises:
        ValueError: neither size is set (a config refuses both).
    """
    if config.vocab_size is not None:
        made = nn.Embedding(config.vocab_size, config.hidden_size, device=device, dtype=dtype)
        if config.embedding_std != 1.0 and not made.weight.is_meta:
            nn.init.normal_(made.weight, std=config.embedding_std)
        return made
    if config.input_size is None:
        raise value_error("build_encoder", "encoder.input_size", "must be set, or encoder.vocab_size", None,
                          "input_size is the number of channels of x")
    if config.stem not in ("none", "auto"):
        return build_stem(config, config.input_size, device=device, dtype=dtype)
    return nn.Linear(config.input_size, config.hidden_size, device=device, dtype=dtype)


def enter(entry: nn.Module, x: torch.Tensor, layout: Layout, call: StackCall) -> Tuple[torch.Tensor, Layout]:
    """The first hidden states of the stack and their layout, which a stem may shorten.

    Args:
        entry: the result of `build_input`.
        x: the layout's packed data.
        layout: of ``x``.
        call: of this pass down the stack, for a stem that keeps a state.
    """
    if isinstance(entry, InceptionStem):
        return entry(x, layout, call)
    return entry(x, layout) if isinstance(entry, Stem) else (entry(x), layout)


def alone(entry: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The output of the input layer for single steps, each without its neighbours.

    Args:
        entry: the result of `build_input` for features, for an encoder that can be fed in pieces.
        x: ``[n, input_size]``.

    Returns:
        ``[n, S, hidden_size]``: at its own step, and at later steps at which a stem still sees it.
    """
    if not isinstance(entry, InceptionStem):
        hidden: torch.Tensor = entry(x)
        return hidden[:, None]
    rows = torch.cat([x[:, None], x.new_zeros(len(x), entry.reach - 1, x.shape[1])], 1)
    return entry(rows, make_layout(rows))[0]


def input_weight(entry: nn.Module) -> torch.Tensor:
    """The weight that is applied to the data; they must have its device and dtype."""
    weight: torch.Tensor = getattr(entry, "weight")
    return weight


def input_width(config: EncoderConfig) -> int:
    """Channels of an encoder that reads features.

    Raises:
        ValueError: it reads token ids.
    """
    if config.input_size is None:
        raise value_error("encoder", "encoder.input_size", "must be set, as for real-valued features", None,
                          f"encoder.vocab_size={config.vocab_size}: it reads token ids")
    return config.input_size


def check_input(config: EncoderConfig, entry: nn.Module, x: Any) -> None:
    """Refuse data that do not fit the encoder.

    Args:
        config: the config of the encoder.
        entry: the result of `build_input`.
        x: the data of the caller.

    Raises:
        ValueError: the message names rank, width, dtype, device or token id.
    """
    if not isinstance(x, torch.Tensor):
        raise value_error("encoder", "x", "must be a tensor", type(x).__name__)
    ids = config.vocab_size is not None
    shape = "[B, T] of token ids" if ids else f"[B, T, {config.input_size}]"
    if x.dim() != (2 if ids else 3) or (not ids and x.shape[2] != config.input_size):
        source = "vocab_size" if ids else "input_size"
        raise value_error("encoder", "x", f"must have shape {shape}", list(x.shape),
                          f"encoder.{source}={getattr(config, source)}")
    weight = input_weight(entry)
    if x.device != weight.device:
        raise value_error("encoder", "x", f"must be on the encoder's device {weight.device}", str(x.device))
    if ids:
        if x.dtype not in _IDS:
            raise value_error("encoder", "x", "must be int32 or int64 token ids", x.dtype)
    elif x.dtype != weight.dtype and not autocast_enabled(x.device.type):
        raise value_error("encoder", "x", f"must have the encoder's dtype {weight.dtype}", x.dtype,
                          f"use x.to({weight.dtype}) or encoder.to({x.dtype})")


def check_ids(config: EncoderConfig, ids: torch.Tensor) -> None:
    """Refuse a token id that the vocabulary does not have; ``ids`` are those of real tokens, without padding."""
    if config.vocab_size is None or tracing() or not ids.numel() or ids.device.type == "meta":
        return
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= config.vocab_size:
        raise value_error("encoder", "x", f"must hold token ids from 0 to {config.vocab_size - 1}",
                          low if low < 0 else high, f"encoder.vocab_size={config.vocab_size}")
