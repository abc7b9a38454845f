"""An output projection over a stack of blocks: logits and loss."""

import copy
import warnings
from typing import Any, Optional, Tuple, Union

import torch
from torch import nn

from myfla.layers.layer_inputs import INERT_FORWARD
from myfla.models.loss import IGNORED, causal_lm_loss, l2_warp, linear_cross_entropy, next_tokens
from myfla.models.outputs import CausalLMOutputWithPast
from myfla.models.stack import KEYWORDS, Module
from myfla.utils.errors import refuse_unknown, value_error

__all__ = ["LanguageModel"]

HEAD_KEYWORDS = ("labels", "shift_labels", "logits_to_keep", "num_items_in_batch")


class LanguageModel(Module):
    """The forward pass of a language model, without a base class; see `Stack`.

    The module has a ``config``, a ``model`` and ``lm_head [vocab_size, hidden_size]``, a projection without bias. Its
    ``criterion`` is None, or a loss to compute instead of the cross entropy: called with ``(logits [B * T, vocab_size],
    labels [B * T])``, or with ``(hidden [B, T, D], labels [B, T], weight, bias)`` if the config says
    ``fuse_linear_cross_entropy``.
    """

    config: Any
    model: Any
    lm_head: nn.Linear
    criterion: Any

    def get_input_embeddings(self) -> nn.Embedding:
        """The embedding."""
        return self.model.embeddings

    def set_input_embeddings(self, embeddings: nn.Embedding) -> None:
        """Replace the embedding."""
        self.model.embeddings = embeddings
        self.tie_weights()

    def tie_weights(self) -> None:
        """Make the output projection the embedding, if the config says so."""
        raise NotImplementedError

    def get_output_embeddings(self) -> nn.Linear:
        """The output projection."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the output projection."""
        self.lm_head = new_embeddings

    def get_decoder(self) -> nn.Module:
        """The model without output projection."""
        return self.model

    def set_decoder(self, decoder: nn.Module) -> None:
        """Replace the model under the output projection."""
        self.model = decoder

    def forward(
        self,
        input_ids: Optional[torch.Tensor] = None,
        attention_mask: Optional[torch.Tensor] = None,
        inputs_embeds: Optional[torch.Tensor] = None,
        past_key_values: Any = None,
        labels: Optional[torch.Tensor] = None,
        use_cache: Optional[bool] = None,
        output_attentions: Optional[bool] = None,
        output_hidden_states: Optional[bool] = None,
        return_dict: Optional[bool] = None,
        logits_to_keep: Union[int, torch.Tensor, None] = 0,
        num_items_in_batch: Union[int, torch.Tensor, None] = None,
        *,
        shift_labels: Optional[torch.Tensor] = None,
        **kwargs: Any,
    ) -> Union[Tuple[Any, ...], CausalLMOutputWithPast]:
        """Read tokens; predict the next ones, and the loss of the labels.

        Args:
            input_ids, attention_mask, inputs_embeds, past_key_values, use_cache, output_attentions,
            output_hidden_states, return_dict, cu_seqlens: see `FLAModel.forward`.
            labels: ``[B, T]`` integers, the tokens themselves; the target of position t is label t + 1, and -100 is
                ignored. In packed sequences the target of the last position of one sequence is the first label of the
                next, as in fla: set these labels to -100.
            logits_to_keep: compute logits for this number of last positions, or for the positions in an index ``[T']``;
                0 or None for all. With labels all are computed. ``num_logits_to_keep`` is its old name.
            num_items_in_batch: divide the summed loss by this, not by the number of labels.
            shift_labels: ``[B, T]``, labels that are shifted already; then ``labels`` is not used.

        Returns:
            `CausalLMOutputWithPast`, or its values as a tuple. With ``fuse_linear_cross_entropy`` and labels there are
            no logits.

        Raises:
            ValueError: as there; labels of another shape, or out of range.
        """
        who = f"{type(self).__name__}.forward"
        if "num_logits_to_keep" in kwargs:
            warnings.warn(f"{who}: num_logits_to_keep is now logits_to_keep", FutureWarning, stacklevel=2)
            logits_to_keep = kwargs.pop("num_logits_to_keep")
        refuse_unknown(who, kwargs, (*KEYWORDS, *HEAD_KEYWORDS), ("cu_seqlens", *INERT_FORWARD))
        out = self.model(
            input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds,
            past_key_values=past_key_values, use_cache=use_cache, output_attentions=output_attentions,
            output_hidden_states=output_hidden_states, return_dict=True, **kwargs,
        )  # fmt: skip
        ignored = getattr(self.criterion, "ignore_index", IGNORED)
        targets = next_tokens(who, labels, shift_labels, out.last_hidden_state, ignored)
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
        if self.criterion is not None:
            return self._by_criterion(hidden_states, targets, num_items_in_batch)
        if getattr(config, "fuse_linear_cross_entropy", False):
            loss = linear_cross_entropy(
                hidden_states, self.lm_head.weight, targets, num_items_in_batch, config.use_l2warp)
            return None, loss
        logits = self.lm_head(hidden_states)
        return logits, causal_lm_loss(logits, targets, num_items_in_batch, config.use_l2warp)

    def _by_criterion(
        self, hidden_states: torch.Tensor, targets: torch.Tensor, num_items_in_batch: Union[int, torch.Tensor, None]
    ) -> Tuple[Optional[torch.Tensor], torch.Tensor]:
        config, criterion = self.config, self.criterion
        if num_items_in_batch is not None:
            if not hasattr(criterion, "reduction"):
                hint = "give it a reduction, or leave num_items_in_batch out"
                raise value_error(type(self).__name__, "criterion", "must have a reduction to be divided by "
                                  "num_items_in_batch", type(criterion).__name__, hint)
            criterion = copy.copy(criterion)
            criterion.reduction = "sum"
        logits = None
        if getattr(config, "fuse_linear_cross_entropy", False):
            loss = criterion(hidden_states, targets, self.lm_head.weight, self.lm_head.bias)
        else:
            logits = self.lm_head(hidden_states)
            loss = criterion(logits.reshape(targets.numel(), -1), targets.reshape(-1))
            loss = l2_warp(loss, logits) if config.use_l2warp else loss
        return logits, loss if num_items_in_batch is None else loss / num_items_in_batch

    def _kept(self, hidden_states: torch.Tensor, logits_to_keep: Union[int, torch.Tensor, None]) -> torch.Tensor:
        if isinstance(logits_to_keep, torch.Tensor):
            return hidden_states[:, logits_to_keep]
        if logits_to_keep is not None and (isinstance(logits_to_keep, bool) or logits_to_keep < 0):
            rule = "must be a number from 0, or an index"
            raise value_error(f"{type(self).__name__}.forward", "logits_to_keep", rule, logits_to_keep)
        return hidden_states[:, -logits_to_keep:] if logits_to_keep else hidden_states
