"""The base class of all recurrent layers: masks and packing, the slot of a cache, the choice of the rule's form."""

import abc
from typing import Any, Callable, Dict, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn as nn

from myfla.backends import summary
from myfla.layers.layer_inputs import INERT_FORWARD, check_hidden_states, check_state, read_layer_state, writes_over
from myfla.layers.token_rows import TokenRows, read_rows
from myfla.layers.utils import update_layer_cache
from myfla.models.utils import Cache
from myfla.utils.errors import refuse_unknown
from myfla.utils.tracing import is_one, tracing

__all__ = ["LayerCall", "RecurrentLayer"]

FORWARD = ("hidden_states", "attention_mask", "past_key_values", "use_cache", "output_attentions", "cu_seqlens")
Rule = Callable[..., Tuple[torch.Tensor, Optional[torch.Tensor]]]


class LayerCall(NamedTuple):
    """One call of a layer, as its mixing part sees it.

    Attributes:
        recurrent_state: ``[N, HV, K, V]`` to continue from, or None.
        conv_state: the state that the layer's convolutions continue from, or None.
        keep: whether the states after the call are wanted.
        cu_seqlens: ``[N + 1]`` offsets of packed sequences, or None.
        chunks: whether the rule takes its chunk form.
        inplace: whether the recurrent form may overwrite ``recurrent_state``.
    """

    recurrent_state: Optional[torch.Tensor]
    conv_state: Any
    keep: bool
    cu_seqlens: Optional[torch.Tensor]
    chunks: bool
    inplace: bool


class RecurrentLayer(nn.Module, abc.ABC):
    """A layer that mixes along time with a state ``[N, HV, K, V]``, perhaps behind short convolutions.

    A subclass sets the attributes below, and says how it mixes (`_mix`) and how outputs leave it (`_output`).

    Attributes:
        who: its name in messages.
        shown: attributes that ``repr`` shows.
        hidden_size, num_v_heads, head_k_dim, head_v_dim: D, HV, K, V.
        mode: ``"chunk"`` or ``"fused_recurrent"``, for long inputs in evaluation without autograd.
        layer_idx: its slot in a cache.
        use_short_conv: whether it has convolutions.
        backend: which code computes the rule, see `myfla.backends`.
    """

    who: str
    shown: Sequence[str] = ()
    hidden_size: int
    num_v_heads: int
    head_k_dim: int
    head_v_dim: int
    mode: str
    layer_idx: Optional[int]
    use_short_conv: bool
    backend: str
    chooses_backend = True

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Optional[torch.Tensor] = None,
        past_key_values: Optional[Any] = None,
        use_cache: Optional[bool] = False,
        output_attentions: Optional[bool] = False,
        **kwargs: Any,
    ) -> Tuple[torch.Tensor, None, Optional[Any]]:
        """Mix a sequence along time.

        Args:
            hidden_states: ``[B, T, hidden_size]``; T may be 0.
            attention_mask: ``[B, T]`` of 0 and 1, or longer (its last T columns count). Padding may be anywhere and may
                contain anything, NaN included; it is removed, so that states and outputs depend on the tokens only.
            past_key_values: a `Cache` to continue from. With ``use_cache`` this layer's states in it are replaced and
                its tokens counted; without, it is read only.
            use_cache: keep the final states.
            output_attentions: accepted and ignored.
            cu_seqlens: (keyword) ``[N + 1]`` int offsets of N sequences packed in one row; the mask is then ignored.

        Returns:
            ``(y, None, past_key_values)`` with y ``[B, T, hidden_size]``, zero at padding.

        Raises:
            ValueError: an input, mask or offsets of the wrong shape, dtype or device.
            CacheError: a cache of another layer, batch, layout or device.
            TypeError: an unknown keyword.
        """
        cu_seqlens = kwargs.pop("cu_seqlens", None)
        refuse_unknown(f"{self.who}.forward", kwargs, FORWARD, INERT_FORWARD)
        check_hidden_states(self.who, hidden_states, self.hidden_size, self._first_weight())
        rows = read_rows(self.who, hidden_states, attention_mask, cu_seqlens)
        x = rows.pack(hidden_states)
        needed = ("recurrent_state", "conv_state") if self.use_short_conv else ("recurrent_state",)
        last = read_layer_state(self.who, self, past_key_values, needed)
        recurrent_state, conv_state = rows.widen(self._check_states(last, rows.sequences, x))
        keep = bool(use_cache) and past_key_values is not None
        inplace = keep and writes_over(past_key_values, recurrent_state)
        call = LayerCall(recurrent_state, conv_state, keep, rows.cu_seqlens, self._uses_chunks(rows.time), inplace)
        y, recurrent_state, conv_state = self._advance(x, call)
        if keep:
            recurrent_state, conv_state = rows.narrow((recurrent_state, conv_state))
            self._write_cache(past_key_values, recurrent_state, conv_state, rows)
        return rows.unpack(y), None, past_key_values

    def extra_repr(self) -> str:
        settings = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.shown)
        return f"{settings}, backend={summary(self.backend, next(self.parameters()).device)}"

    def _advance(self, x: torch.Tensor, call: LayerCall) -> Tuple[torch.Tensor, Optional[torch.Tensor], Any]:
        """``y [B, T, D]`` of tokens without padding; the final recurrent and convolution states."""
        o, recurrent_state, conv_state = self._mix(x, call)
        return self._output(x, o), recurrent_state, conv_state

    # ---- for subclasses --------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def _mix(self, x: torch.Tensor, call: LayerCall) -> Tuple[torch.Tensor, Optional[torch.Tensor], Any]:
        """Outputs of the rule ``[B, T, HV, V]`` for x ``[B, T, D]``; the final recurrent and convolution states."""

    @abc.abstractmethod
    def _output(self, x: torch.Tensor, o: torch.Tensor) -> torch.Tensor:
        """``y [B, T, D]`` from the layer's input x and the rule's outputs o."""

    def _first_weight(self) -> Any:
        """The weight whose format and device the input must have."""
        return getattr(getattr(self, "q_proj", None), "weight", None)

    @abc.abstractmethod
    def _check_conv_state(self, conv: Any, sequences: int, x: torch.Tensor) -> Any:
        """The convolutions' state of a cache, checked; ``conv`` is not None."""

    def _run_rule(self, chunk: Rule, recurrent: Rule, call: LayerCall, **given: Any) -> Any:
        """The rule in the form that the call takes: outputs ``[B, T, HV, V]`` and the final state."""
        more: Dict[str, Any] = {} if call.chunks else {"inplace_final_state": call.inplace}
        return (chunk if call.chunks else recurrent)(
            initial_state=call.recurrent_state, output_final_state=call.keep, cu_seqlens=call.cu_seqlens,
            backend=self.backend, **more, **given,
        )  # fmt: skip

    # ---- the cache's slot ------------------------------------------------------------------------------------------

    def _uses_chunks(self, q_len: int) -> bool:
        if tracing():  # except for one token; a graph must not depend on a threshold
            return not is_one(q_len)
        if torch.is_grad_enabled() or self.training:
            return True
        return q_len > 64 and self.mode == "chunk"

    def _check_states(
        self, state: Optional[Dict[str, Any]], sequences: int, x: torch.Tensor
    ) -> Tuple[Optional[torch.Tensor], Any]:
        """The states of the layer's cache slot; a CacheError if they do not fit the layer or the sequences."""
        if state is None:
            return None, None
        recurrent, conv = state.get("recurrent_state"), state.get("conv_state")
        if recurrent is not None:
            sizes = (("batch", sequences), ("value heads", self.num_v_heads), ("key size", self.head_k_dim),
                     ("value size", self.head_v_dim))
            check_state(self.who, "recurrent_state", recurrent, sizes, x, wide=True)
        return recurrent, None if conv is None else self._check_conv_state(conv, sequences, x)

    def _write_cache(self, cache: Any, recurrent_state: Optional[torch.Tensor], conv_state: Any,
                     rows: TokenRows) -> None:
        real = {"lengths": rows.lengths()} if isinstance(cache, Cache) and rows.cu_seqlens is not None else {}
        update_layer_cache(
            self, cache, recurrent_state=recurrent_state, conv_state=conv_state, offset=rows.time, **real
        )
