"""The forward pass that all models share: tokens in, blocks, norm; logits and loss."""

import functools
import warnings
from typing import Any, Dict, Optional, Tuple, Union

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from myfla.layers.layer_inputs import INERT_FORWARD
from myfla.models.generation import GenerationMixin
from myfla.models.loss import causal_lm_loss, linear_cross_entropy, next_tokens
from myfla.models.outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from myfla.models.pretrained import FLAPreTrainedModel
from myfla.models.utils import Cache
from myfla.utils.errors import CacheError, message, refuse_unknown, value_error

__all__ = ["FLAForCausalLM", "FLAModel", "FLAPreTrainedModel", "normal_"]

KEYWORDS = (
    "input_ids", "attention_mask", "inputs_embeds", "past_key_values", "use_cache", "output_attentions",
    "output_hidden_states", "return_dict", "cu_seqlens",
)  # fmt: skip
HEAD_KEYWORDS = ("labels", "shift_labels", "logits_to_keep", "num_items_in_batch")


class FLAModel(FLAPreTrainedModel):
    """A stack of blocks between an embedding and a norm. Subclasses make ``embeddings``, ``layers`` and ``norm``.

    Attributes:
        carried: what a block hands to the next beside the hidden states.
        state_fields: fields of the config that decide what is in a cache.
    """

    carried = ""
    state_fields: Tuple[str, ...] = ()

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
        **kwargs: Any,
    ) -> Union[Tuple[Any, ...], BaseModelOutputWithPast]:
        """Read tokens.

        Args:
            input_ids: ``[B, T]`` integers.
            attention_mask: ``[B, T]`` of 0 and 1, or longer (its last T columns count). Pads may stand anywhere; they
                change neither the states nor what is computed for tokens. What is returned at pads has no meaning.
            inputs_embeds: ``[B, T, hidden_size]`` in place of ``input_ids``.
            past_key_values: a `Cache` to go on from, or its legacy form. With ``use_cache`` it is advanced.
            use_cache: keep states; by default as the config says in evaluation, and not in training.
            output_attentions: refused with a warning; there are none.
            output_hidden_states: return the input of every block too.
            return_dict: an output object (default) or a tuple of what is there.
            cu_seqlens: (keyword) ``[N + 1]`` int offsets of N sequences packed in one row; the mask is then ignored.

        Returns:
            `BaseModelOutputWithPast`, or its values as a tuple.

        Raises:
            ValueError: none or both of ids and embeddings; an input of the wrong shape, or an id out of range.
            CacheError: a cache of another model.
            TypeError: an unknown keyword.
        """
        who = f"{type(self).__name__}.forward"
        refuse_unknown(who, kwargs, KEYWORDS, ("cu_seqlens", *INERT_FORWARD))
        if output_attentions:
            warnings.warn(f"{who}: output_attentions is ignored, there are no attention weights", stacklevel=2)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        hidden_states = self._embed(who, input_ids, inputs_embeds)
        cache = self._cache(who, past_key_values, use_cache)
        shared = {"attention_mask": attention_mask, "past_key_values": cache, "use_cache": use_cache,
                  "cu_seqlens": kwargs.get("cu_seqlens")}

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
        if not isinstance(input_ids, torch.Tensor) or input_ids.dim() != 2 or input_ids.is_floating_point():
            got = type(input_ids).__name__
            if isinstance(input_ids, torch.Tensor):
                got = f"{input_ids.dtype} {list(input_ids.shape)}"
            raise value_error(who, "input_ids", "must be integers [B, T]", got)
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


class FLAForCausalLM(FLAPreTrainedModel, GenerationMixin):
    """A model and an output map. Subclasses say which model.

    Attributes:
        model: the `FLAModel`.
        lm_head: ``[vocab_size, hidden_size]``, without bias.
    """

    model_class = FLAModel
    headless = False

    def __init__(self, config: Any, *, device: Any = None, dtype: Optional[torch.dtype] = None) -> None:
        super().__init__(config)
        self.model = self.model_class(config, device=device, dtype=dtype)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False, device=device, dtype=dtype)
        self.init_head()
        self.tie_weights()

    def init_head(self) -> None:
        """Draw the output map afresh."""
        raise NotImplementedError

    def tie_weights(self) -> None:
        """Make the output map the embedding, if the config says so."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embeddings.weight

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding."""
        return self.model.embeddings

    def set_input_embeddings(self, embeddings: nn.Embedding) -> None:
        """Put another embedding in."""
        self.model.embeddings = embeddings
        self.tie_weights()

    def get_output_embeddings(self) -> nn.Linear:
        """The output map."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Put another output map in."""
        self.lm_head = new_embeddings

    def get_decoder(self) -> nn.Module:
        """The model without output map."""
        return self.model

    def set_decoder(self, decoder: nn.Module) -> None:
        """Put another model under the output map."""
        self.model = decoder

    def _saved_tensors(self) -> Dict[str, torch.Tensor]:
        tensors = dict(self.state_dict())
        if self.config.tie_word_embeddings:
            tensors.pop("lm_head.weight")
        return tensors

    def forward(
        self,
        input_ids: Optional[torch.Tensor] = None,
        attention_mask: Optional[torch.Tensor] = None,
        inputs_embeds: Optional[torch.Tensor] = None,
        past_key_values: Any = None,
        labels: Optional[torch.Tensor] = None,
        shift_labels: Optional[torch.Tensor] = None,
        use_cache: Optional[bool] = None,
        output_attentions: Optional[bool] = None,
        output_hidden_states: Optional[bool] = None,
        return_dict: Optional[bool] = None,
        logits_to_keep: Union[int, torch.Tensor, None] = 0,
        num_items_in_batch: Union[int, torch.Tensor, None] = None,
        **kwargs: Any,
    ) -> Union[Tuple[Any, ...], CausalLMOutputWithPast]:
        """Read tokens, tell the next ones, and how surprising the labels are.

        Args:
            input_ids, attention_mask, inputs_embeds, past_key_values, use_cache, output_attentions,
            output_hidden_states, return_dict, cu_seqlens: see `FLAModel.forward`.
            labels: ``[B, T]`` integers, the tokens themselves; position t is held to label t + 1, -100 to nothing. Of
                packed sequences the last position of one is held to the first label of the next, as officially: set
                those to -100.
            shift_labels: ``[B, T]``, labels moved already; they win.
            logits_to_keep: compute logits for so many last positions, or for the positions in an index ``[T']``; 0 or
                None for all. With labels they are all computed.
            num_items_in_batch: divide the summed loss by this, not by the number of labels.

        Returns:
            `CausalLMOutputWithPast`, or its values as a tuple. With ``fuse_linear_cross_entropy`` and labels there are
            no logits.

        Raises:
            ValueError: as there; labels of another shape, or out of range.
        """
        who = f"{type(self).__name__}.forward"
        refuse_unknown(who, kwargs, (*KEYWORDS, *HEAD_KEYWORDS), ("cu_seqlens", *INERT_FORWARD))
        out = self.model(
            input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds,
            past_key_values=past_key_values, use_cache=use_cache, output_attentions=output_attentions,
            output_hidden_states=output_hidden_states, return_dict=True, **kwargs,
        )  # fmt: skip
        targets = next_tokens(who, labels, shift_labels, out.last_hidden_state)
        logits, loss = self.logits_and_loss(out.last_hidden_state, targets, logits_to_keep, num_items_in_batch)
        full = CausalLMOutputWithPast(loss, logits, out.past_key_values, out.hidden_states)
        as_object = self.config.return_dict if return_dict is None else return_dict
        return full if as_object else full.to_tuple()

    def logits_and_loss(
        self,
        hidden_states: torch.Tensor,
        targets: Optional[torch.Tensor] = None,
        logits_to_keep: Union[int, torch.Tensor, None] = 0,
        num_items_in_batch: Union[int, torch.Tensor, None] = None,
    ) -> Tuple[Optional[torch.Tensor], Optional[torch.Tensor]]:
        """Logits of the positions kept and, with targets ``[B, T]``, the loss."""
        config = self.config
        if targets is None:
            return self.lm_head(self._kept(hidden_states, logits_to_keep)), None
        if config.fuse_linear_cross_entropy:
            loss = linear_cross_entropy(
                hidden_states, self.lm_head.weight, targets, num_items_in_batch, config.use_l2warp)
            return None, loss
        logits = self.lm_head(hidden_states)
        return logits, causal_lm_loss(logits, targets, num_items_in_batch, config.use_l2warp)

    def _kept(self, hidden_states: torch.Tensor, logits_to_keep: Union[int, torch.Tensor, None]) -> torch.Tensor:
        if isinstance(logits_to_keep, torch.Tensor):
            return hidden_states[:, logits_to_keep]
        if logits_to_keep is not None and (isinstance(logits_to_keep, bool) or logits_to_keep < 0):
            rule = "must be a number from 0, or an index"
            raise value_error(f"{type(self).__name__}.forward", "logits_to_keep", rule, logits_to_keep)
        return hidden_states[:, -logits_to_keep:] if logits_to_keep else hidden_states


def _by_place(call: Any, name: str, hidden_states: torch.Tensor, carried: Any) -> Any:
    return call(hidden_states, **{name: carried})


def normal_(module: nn.Module, std: float) -> None:
    """Draw the weight of an embedding or linear map from a normal law."""
    if module.weight.device.type != "meta":
        nn.init.normal_(module.weight, mean=0.0, std=std)
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)
