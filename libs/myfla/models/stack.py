"""The forward pass that all models share: tokens in, blocks, norm."""

import functools
import warnings
from typing import TYPE_CHECKING, Any, Dict, Optional, Tuple, Union

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from myfla.layers.layer_inputs import INERT_FORWARD
from myfla.models.outputs import BaseModelOutputWithPast
from myfla.models.utils import Cache
from myfla.utils.errors import CacheError, message, refuse_unknown, value_error
from myfla.utils.tracing import tracing

__all__ = ["KEYWORDS", "Stack", "normal_"]

if TYPE_CHECKING:
    Module = nn.Module  # what `Stack` and `LanguageModel` are mixed into
else:
    Module = object

IDS = (torch.int64, torch.int32)  # what an embedding reads
KEYWORDS = (
    "input_ids", "attention_mask", "inputs_embeds", "past_key_values", "use_cache", "output_attentions",
    "output_hidden_states", "return_dict", "cu_seqlens",
)  # fmt: skip


class Stack(Module):
    """A stack of blocks between an embedding and a norm: the parts and the forward pass, without a base class.

    So it serves modules of PyTorch and of transformers alike. Subclasses say in `build` what the parts are; the module
    has a ``config`` and a flag ``gradient_checkpointing``.

    Attributes:
        carried: the values that a block passes to the next in addition to the hidden states.
        state_fields: fields of the config that decide what is in a cache.
    """

    carried = ""
    state_fields: Tuple[str, ...] = ()
    config: Any
    gradient_checkpointing: bool
    embeddings: nn.Embedding
    layers: nn.ModuleList
    norm: nn.Module

    def build(self, config: Any, device: Any = None, dtype: Optional[torch.dtype] = None) -> None:
        """Make ``embeddings``, ``layers`` and ``norm``."""
        raise NotImplementedError

    def init_module(self, module: nn.Module) -> None:
        """Initialise the parameters of a module as in a new model; called for children before their parents."""
        raise NotImplementedError

    def init_head(self, head: nn.Linear) -> None:
        """Initialise the output projection of a language model."""
        raise NotImplementedError

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding."""
        return self.embeddings

    def set_input_embeddings(self, embeddings: nn.Embedding) -> None:
        """Put another embedding in."""
        self.embeddings = embeddings

    def forward(
        self,
        input_ids: Optional[torch.Tensor] = None,
        attention_mask: Optional[torch.Tensor] = None,
        inputs_embeds: Optional[torch.Tensor] = None,
        past_key_values: Any = None,
        use_cache: Optional[bool] = None,
        output_attentions: Optional[bool] = None,
        output_hidden_states: Optional[bool] = None,
        return_dict: Optional[bool] = None,
        cu_seqlens: Optional[torch.Tensor] = None,
        **kwargs: Any,
    ) -> Union[Tuple[Any, ...], BaseModelOutputWithPast]:
        """Read tokens.

        Args:
            input_ids: ``[B, T]`` integers.
            attention_mask: ``[B, T]`` of 0 and 1, or longer (its last T columns count). Pads may be anywhere; they
                change neither the states nor what is computed for tokens. What is returned at pads has no meaning.
            inputs_embeds: ``[B, T, hidden_size]`` in place of ``input_ids``.
            past_key_values: a `Cache` to continue from, or its legacy form. With ``use_cache`` it is advanced.
            use_cache: keep states; by default as the config says in evaluation, and not in training.
            output_attentions: refused with a warning; there are none.
            output_hidden_states: return the input of every block too.
            return_dict: an output object (default) or a tuple of what is there.
            cu_seqlens: ``[N + 1]`` int offsets of N sequences packed in one row; the mask is then ignored.

        Returns:
            `BaseModelOutputWithPast`, or its values as a tuple.

        Raises:
            ValueError: none or both of ids and embeddings; an input of the wrong shape, or an id out of range.
            CacheError: a cache of another model.
            TypeError: an unknown keyword.
        """
        who = f"{type(self).__name__}.forward"
        refuse_unknown(who, kwargs, KEYWORDS, INERT_FORWARD)
        if output_attentions:
            warnings.warn(f"{who}: output_attentions is ignored, there are no attention weights", stacklevel=2)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden_states = self._embed(who, input_ids, inputs_embeds)
        cache = self._cache(who, past_key_values, use_cache)
        shared = {"attention_mask": attention_mask, "past_key_values": cache, "use_cache": use_cache,
                  "cu_seqlens": cu_seqlens}

        seen: Tuple[torch.Tensor, ...] = ()
        carried = None
        for layer in self.layers:
            seen = (*seen, hidden_states) if output_hidden_states else seen
            hidden_states, carried = self._run(layer, hidden_states, carried, shared)
        hidden_states = self._finish(hidden_states, carried)
        seen = (*seen, hidden_states) if output_hidden_states else seen

        out = BaseModelOutputWithPast(hidden_states, cache, seen or None)
        as_object = self.config.return_dict if return_dict is None else return_dict
        return out if as_object else out.to_tuple()

    def _run(
        self, layer: nn.Module, hidden_states: torch.Tensor, carried: Any, shared: Dict[str, Any]
    ) -> Tuple[torch.Tensor, Any]:
        call = functools.partial(layer, **shared)
        if not (self.gradient_checkpointing and self.training and torch.is_grad_enabled()):
            out = call(hidden_states, **{self.carried: carried})
        elif shared["use_cache"]:
            hint = "states would be counted again in the backward pass; call gradient_checkpointing_disable()"
            raise value_error(type(self).__name__, "use_cache", "must be False with gradient checkpointing", True, hint)
        else:
            out = checkpoint(_by_place, call, self.carried, hidden_states, carried, use_reentrant=False)
        return out[0], out[3]

    def _finish(self, hidden_states: torch.Tensor, carried: Any) -> torch.Tensor:
        return self.norm(hidden_states)

    def _embed(self, who: str, input_ids: Any, inputs_embeds: Any) -> torch.Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            got = "neither" if input_ids is None else "both"
            raise value_error(who, "input_ids", "or inputs_embeds must be given, and not both", got)
        if inputs_embeds is not None:
            return inputs_embeds
        if not isinstance(input_ids, torch.Tensor) or input_ids.dim() != 2 or input_ids.dtype not in IDS:
            got = type(input_ids).__name__
            if isinstance(input_ids, torch.Tensor):
                got = f"{input_ids.dtype} {list(input_ids.shape)}"
            raise value_error(who, "input_ids", "must be integers [B, T], int64 or int32", got)
        try:
            return self.embeddings(input_ids)
        except IndexError:
            size = self.embeddings.num_embeddings
            strange = input_ids[(input_ids < 0) | (input_ids >= size)]
            rule = f"must be from 0 to {size - 1}"
            raise value_error(who, "input_ids", rule, int(strange[0]), "the tokenizer is of another model") from None

    def _cache(self, who: str, past_key_values: Any, use_cache: bool) -> Any:
        """The cache to read and advance, marked as this model's."""
        if past_key_values is None and not use_cache:
            return None
        cache = past_key_values
        if cache is None or isinstance(cache, (list, tuple)):
            cache = Cache.from_legacy_cache(cache)
        foreign = type(cache).__module__.startswith("transformers.")
        if foreign or not all(hasattr(cache, name) for name in ("update", "__getitem__", "__len__")):
            hint = "leave it out, or use myfla.models.Cache"
            raise CacheError(message(who, "past_key_values", "must be a Cache", type(cache).__name__, hint))
        if tracing():  # whose it is was checked when it was made
            return cache
        mark = " ".join([self.config.model_type, *(f"{f}={getattr(self.config, f)}" for f in self.state_fields)])
        found = getattr(cache, "fingerprint", mark)
        if found is not None and found != mark:
            raise CacheError(message(who, "past_key_values", f"must be of this model, {mark!r}", found))
        if len(cache) > len(self.layers):
            rule = f"must have at most {len(self.layers)} layers"
            raise CacheError(message(who, "past_key_values", rule, len(cache), "it is of a deeper model"))
        if found is None and use_cache:
            cache.fingerprint = mark
        return cache


def _by_place(call: Any, name: str, hidden_states: torch.Tensor, carried: Any) -> Any:
    return call(hidden_states, **{name: carried})


def normal_(module: Union[nn.Linear, nn.Conv1d, nn.Embedding], std: float) -> None:
    """Draw the weight of an embedding or projection from a normal distribution."""
    if module.weight.device.type != "meta":
        nn.init.normal_(module.weight, mean=0.0, std=std)
    bias = getattr(module, "bias", None)
    if bias is not None:
        nn.init.zeros_(bias)
