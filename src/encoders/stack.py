"""The encoder: input, residual blocks in one or both directions, final norm, pooling."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple, Optional, Sequence, Union

import torch
import torch.nn as nn

from cfg.encoder import EncoderConfig
from cfg.encoder_mapping import portable_mapping
from encoders.batch import Layout, make_layout
from encoders.blocks import StackCall
from encoders.contract import BlockBuilder
from encoders.encoding import encode_raw
from encoders.inputs import build_input, check_ids, check_input, enter, input_weight
from encoders.pipeline import InputPipeline
from encoders.pooling import build_pooling
from encoders.raw import open_batch, place, prepare
from encoders.saving import save_encoder
from encoders.weaving import Pass, build_weaving
from myfla.models.state_tree import tensors_of
from myfla.models.utils import Cache
from myfla.utils.dtypes import autocast_enabled
from myfla.utils.errors import CacheError, message, value_error

__all__ = ["Encoder", "EncoderOutput"]


class EncoderOutput(NamedTuple):
    """What an encoder returns.

    Attributes:
        hidden: ``[B, T, hidden_size]``, zeros at padding; for packed input ``[1, total, hidden_size]``. With a stem of
            stride s, sequences of length L have ``ceil(L / s)`` steps here, at the beginning of each row.
        embedding: ``[N, hidden_size]``, pooled over the tokens of this call; zero for a sequence without tokens.
        cache: the states after this call, or None if none were requested.
        lengths: ``[N]`` int64, the steps of each sequence in ``hidden``.
    """

    hidden: torch.Tensor
    embedding: torch.Tensor
    cache: Optional[Cache]
    lengths: torch.Tensor


class Encoder(nn.Module):
    """A stack of a strategy's blocks over real-valued features or token ids.

    ``direction="bidirectional"``: each layer has a second block that reads every sequence backwards, and the layer's
    output is the mean of both.

    Args:
        config: the config; it is checked and copied.
        strategy: the strategy, which builds blocks and norms.
        device, dtype: of every parameter.

    Attributes:
        pipeline: the pipeline of a trained encoder that `encoders.load_encoder` has read; with it, the encoder takes
            raw data in all the forms that `encode` takes. None for a new encoder.

    Example:
        >>> from cfg.encoder import GatedDeltaNetEncoderConfig
        >>> from encoders import build_encoder
        >>> encoder = build_encoder(GatedDeltaNetEncoderConfig(input_size=3))
        >>> first = encoder(torch.randn(2, 5, 3), use_cache=True)
        >>> encoder(torch.randn(2, 1, 3), cache=first.cache).embedding.shape
        torch.Size([2, 64])
    """

    def __init__(self, config: EncoderConfig, strategy: BlockBuilder, device: Any = None,
                 dtype: Any = None) -> None:
        super().__init__()
        self.config = dataclasses.replace(config)  # a copy, checked: the caller may change its own
        self.strategy = strategy
        made = dict(device=device, dtype=dtype)
        layers = range(self.config.num_layers)
        self.input = build_input(self.config, **made)
        self.blocks = nn.ModuleList(strategy.build_block(self.config, i, **made) for i in layers)
        backwards = layers if self.config.direction == "bidirectional" else ()
        self.backward_blocks = nn.ModuleList(strategy.build_block(self.config, i, **made) for i in backwards)
        self.weaving = build_weaving(strategy, self.config, **made)
        self.backward_weaving = build_weaving(strategy, self.config, **made) if self.backward_blocks else None
        self.norm = strategy.build_norm(self.config, **made)
        self.pooling = build_pooling(self.config.pooling, self.config.hidden_size, **made)
        sizes = {"stem_stride": self.config.shortening, "stem_kernel": self.config.widest_kernel}
        settings = json.dumps({**portable_mapping(self.config), **sizes}, sort_keys=True)
        self.pipeline: Optional[InputPipeline] = None
        #: A digest of the settings; a cache of an encoder with other settings is refused.
        self.fingerprint = hashlib.sha256(settings.encode("utf-8")).hexdigest()[:16]

    def forward(
        self,
        x: Any,
        lengths: Union[torch.Tensor, Sequence[int], None] = None,
        attention_mask: Optional[torch.Tensor] = None,
        cu_seqlens: Optional[torch.Tensor] = None,
        cache: Optional[Cache] = None,
        use_cache: Optional[bool] = None,
    ) -> EncoderOutput:
        """Encode a batch, whole or in pieces.

        A causal encoder can be fed in pieces, if each call gets the cache of the call before: its hidden states are
            then those of one call with the whole sequences. The embedding is always over the tokens of the call. Rows
            may have different numbers of new tokens, or none.

        Args:
            x: features ``[B, T, input_size]`` in the encoder's dtype, or token ids ``[B, T]`` (int32 or int64);
                packed ``[1, total, ...]`` with ``cu_seqlens``. With a `pipeline`: raw features of any dtype, or what
                `encode` takes.
            lengths: ``[B]``, tokens of each row; pads follow them.
            attention_mask: ``[B, T]`` of 0 and 1, padding anywhere. The content of padding is never read.
            cu_seqlens: ``[N + 1]``, where each packed sequence starts, and the end.
            cache: states to continue from; it is not changed, and the returned cache has the new states. Only a cache
                of `Cache.in_place` is itself updated and returned.
            use_cache: return a cache; by default if one was given.

        Returns:
            `EncoderOutput`.

        Raises:
            ValueError: the data or its layout does not fit; more than one of ``lengths``, ``attention_mask`` and
                ``cu_seqlens``; a cache for an encoder that must know the end of a sequence: one that is bidirectional,
                weaves states or has a shortening stem.
            CacheError: the cache belongs to another model or batch.
        """
        if self.pipeline is not None:
            x, found = open_batch(self.pipeline, x, (lengths, attention_mask, cu_seqlens))
            lengths, x = lengths if found is None else found, place(x, input_weight(self.input).device)
        else:
            check_input(self.config, self.input, x)
        layout = make_layout(x, lengths, attention_mask, cu_seqlens)
        use_cache = cache is not None if use_cache is None else use_cache
        state = self._open_cache(cache, use_cache, layout.lengths.shape[0])
        if cache is not None and state is not None:
            state = layout.widen(state)
        tokens = layout.pack(x)
        if self.pipeline is not None:
            tokens = prepare(self.pipeline, tokens, layout, use_cache or cache is not None)
            tokens = tokens if self.pipeline.schema is None else tokens.to(input_weight(self.input).dtype)
        check_ids(self.config, tokens)
        call = StackCall(layout.cu_seqlens, state, use_cache)
        hidden, layout = enter(self.input, tokens, layout, call)
        hidden = self.norm(self._run(hidden, layout, call._replace(cu_seqlens=layout.cu_seqlens)))
        if state is not None and use_cache:
            state = layout.narrow(state)
            self._close_cache(state, layout, tokens.shape[1])
        embedding = self.pooling(hidden, layout)
        return EncoderOutput(layout.unpack(hidden), embedding, state if use_cache else None, layout.lengths)

    def encode(self, x: Any, batch_tokens: int = 16384, per_step: bool = False) -> Union[torch.Tensor, list]:
        """Embeddings of raw data, without gradients; sequences of similar length are computed together.

        Args:
            x: one sequence or many: arrays, lists, tensors, columns by name; see `encoders.raw.read_sequences`.
            batch_tokens: largest number of tokens in a call, padding included; a longer sequence is computed alone.
            per_step: return the hidden states of each sequence instead of its embedding.

        Returns:
            ``[N, hidden_size]`` on the CPU; with ``per_step`` a list of ``[T_i, hidden_size]``.

        Example:
            >>> from encoders import build_encoder
            >>> encoder = build_encoder({"name": "gated_deltanet", "input_size": 2})
            >>> encoder.encode([[[0.1, 0.2]], [[0.3, 0.4], [0.5, 0.6]]]).shape
            torch.Size([2, 64])
        """
        return encode_raw(self, x, batch_tokens, per_step)

    def save(self, path: Union[str, Path], pipeline: Optional[InputPipeline] = None) -> Path:
        """Write weights, config and input pipeline.

        Args:
            path, pipeline: as for `encoders.saving.save_encoder`.

        Returns:
            The path of the weights file.
        """
        return save_encoder(self, path, pipeline)

    def extra_repr(self) -> str:
        """Name, direction and fingerprint, for ``repr``."""
        return f"{self.config.name}, {self.config.direction}, fingerprint={self.fingerprint}"

    def _run(self, hidden: torch.Tensor, layout: Layout, call: StackCall) -> torch.Tensor:
        batch = layout.lengths.shape[0]
        ahead = Pass(call, self.weaving, batch)
        if not self.backward_blocks:
            for i, block in enumerate(self.blocks):
                hidden = ahead(i, block, hidden)
            return hidden
        behind, turn = Pass(call, self.backward_weaving, batch), layout.reverser()
        for i, (block, back) in enumerate(zip(self.blocks, self.backward_blocks)):
            hidden = (ahead(i, block, hidden) + turn(behind(i, back, turn(hidden)))) / 2
        return hidden

    def _open_cache(self, cache: Optional[Cache], use_cache: bool, batch: int) -> Optional[Cache]:
        got = "use_cache" if cache is None else "a cache"
        if self.backward_blocks and (cache is not None or use_cache):
            hint = "reading backwards starts at the end of a sequence; build it with encoder.direction=causal"
            raise value_error("encoder", "cache", "cannot be used with direction='bidirectional'", got, hint)
        if self.weaving is not None and (cache is not None or use_cache):
            hint = "a layer begins where the one before it ended, at the end of the sequence; build it without"
            raise value_error("encoder", "cache", "cannot be used with state_weaving=True", got, hint)
        if self.config.stem in ("patch", "conv") and (cache is not None or use_cache):
            hint = "the end of a sequence closes its last step; build it with encoder.stem=none"
            raise value_error("encoder", "cache", f"cannot be used with stem={self.config.stem!r}", got, hint)
        if cache is None:
            return Cache() if use_cache else None
        if not isinstance(cache, Cache):
            raise CacheError(message("encoder", "cache", "must be a myfla.models.utils.Cache", type(cache).__name__))
        if cache.batch_size is not None:
            weight = input_weight(self.input)
            # A cache made by hand has no fingerprint; under autocast the stored activations have another dtype.
            cache.require("encoder", fingerprint=self.fingerprint if cache.fingerprint else None,
                          layers=len(self.blocks) + (self.config.stem == "inception"), batch=batch,
                          dtype=None if autocast_enabled(weight.device.type) else weight.dtype)
            device = next(tensors_of(cache[0]))[1].device
            if device != weight.device:
                raise CacheError(message("encoder", "cache", f"must be on the encoder's device {weight.device}",
                                         str(device), f"use cache.to({str(weight.device)!r})"))
        return cache if cache.inplace else cache.fork()

    def _close_cache(self, state: Cache, layout: Layout, packed: int) -> None:
        state.fingerprint = self.fingerprint
        if layout.tokens is not None:
            # The layers counted packed tokens; for the caller, positions include padding.
            none = torch.zeros_like(layout.lengths)
            for i in range(len(state)):
                state.update(layer_idx=i, offset=layout.time - packed, lengths=none)
