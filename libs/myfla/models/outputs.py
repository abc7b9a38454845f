"""The outputs of models: values by attribute, by name and by position."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Iterator, List, Optional, Tuple

import torch
from torch.utils import _pytree as pytree

__all__ = ["BaseModelOutputWithPast", "CausalLMOutputWithPast", "GenerateOutput", "ModelOutput"]


class ModelOutput(Mapping):
    """Base of the outputs; behaves as transformers' do.

    ``out.name`` is None for a missing value. ``out["name"]``, ``out[0]``, ``out[:2]``, ``len(out)``, iteration (over
    names) and `to_tuple` contain only the values that are not None.

    Example:
        >>> out = CausalLMOutputWithPast(logits=torch.zeros(1, 2, 3))
        >>> out.loss is None, out[0].shape, list(out), out["logits"] is out.logits
        (True, torch.Size([1, 2, 3]), ['logits'], True)
    """

    def to_tuple(self) -> Tuple[Any, ...]:
        """The values that are not None, in order."""
        return tuple(getattr(self, name) for name in self)

    def __iter__(self) -> Iterator[str]:
        shown = dataclasses.fields(self)  # type: ignore[arg-type]  # every output is a dataclass, this base is none
        return (field.name for field in shown if getattr(self, field.name) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            if key not in list(self):
                raise KeyError(f"{type(self).__name__}: {key!r} is not there; it has {', '.join(self)}")
            return getattr(self, key)
        return self.to_tuple()[key]

    # A mapping compares by content, which tensors do not do.
    __eq__ = object.__eq__
    __hash__ = object.__hash__


@dataclasses.dataclass(eq=False)
class BaseModelOutputWithPast(ModelOutput):
    """The output of a model without an output projection.

    Attributes:
        last_hidden_state: ``[B, T, hidden_size]``, after the last norm.
        past_key_values: the `Cache`, if one was given or kept.
        hidden_states: the input of every block and the last hidden state, if requested.
        attentions: always None.
    """

    last_hidden_state: Optional[torch.Tensor] = None
    past_key_values: Optional[Any] = None
    hidden_states: Optional[Tuple[torch.Tensor, ...]] = None
    attentions: Optional[Tuple[Any, ...]] = None


@dataclasses.dataclass(eq=False)
class CausalLMOutputWithPast(ModelOutput):
    """The output of a language model.

    Attributes:
        loss: scalar, if labels were given.
        logits: ``[B, T', vocab_size]`` for the T' positions kept.
        past_key_values, hidden_states, attentions: as in `BaseModelOutputWithPast`.
    """

    loss: Optional[torch.Tensor] = None
    logits: Optional[torch.Tensor] = None
    past_key_values: Optional[Any] = None
    hidden_states: Optional[Tuple[torch.Tensor, ...]] = None
    attentions: Optional[Tuple[Any, ...]] = None


@dataclasses.dataclass(eq=False)
class GenerateOutput(ModelOutput):
    """The output of ``generate(return_dict_in_generate=True)``.

    Attributes:
        sequences: ``[B, T + new]`` int64, prompt and continuation.
        scores: for each new token ``[B, vocab_size]``, the logits it was chosen from after all filters, if requested.
        past_key_values: the `Cache` after the last token that the model has read.
    """

    sequences: Optional[torch.Tensor] = None
    scores: Optional[Tuple[torch.Tensor, ...]] = None
    past_key_values: Optional[Any] = None


def _flatten(out: ModelOutput) -> Tuple[List[Any], Any]:
    return list(out.to_tuple()), (type(out), tuple(out))


def _unflatten(values: Any, about: Any) -> ModelOutput:
    kind, names = about
    return kind(**dict(zip(names, values)))


# So that parallel wrappers and exporters find the tensors in outputs.
_register = getattr(pytree, "register_pytree_node", None) or getattr(pytree, "_register_pytree_node", None)
for _kind in (BaseModelOutputWithPast, CausalLMOutputWithPast, GenerateOutput):
    if _register is not None:
        _register(_kind, _flatten, _unflatten)
