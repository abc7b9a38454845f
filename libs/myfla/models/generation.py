"""`generate`: continue prompts token by token, each step at the cost of one token."""

import warnings
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import torch

from myfla.models.outputs import GenerateOutput
from myfla.models.sampling import Sampler
from myfla.utils.errors import refuse_unknown, value_error

__all__ = ["GenerationMixin"]

WHO = "generate"
NEW_TOKENS = 20
TOP_K = 50
UNSET: Any = object()
KEYWORDS = (
    "input_ids", "attention_mask", "max_new_tokens", "max_length", "do_sample", "temperature", "top_k", "top_p",
    "eos_token_id", "pad_token_id", "use_cache", "past_key_values", "num_return_sequences", "generator", "streamer",
    "return_dict_in_generate", "output_scores", "inputs_embeds",
)  # fmt: skip


class GenerationMixin:
    """Adds `generate` to a model with ``config``, ``generation_config``, ``model`` and ``lm_head``.

    Example:
        >>> from myfla.models import GatedDeltaNetConfig, GatedDeltaNetForCausalLM
        >>> config = GatedDeltaNetConfig(hidden_size=16, head_dim=8, num_heads=2, num_hidden_layers=1, vocab_size=9)
        >>> model = GatedDeltaNetForCausalLM(config).eval()
        >>> isinstance(model, GenerationMixin), model.generate(torch.tensor([[1, 2]]), max_length=3).shape
        (True, torch.Size([1, 3]))
    """

    config: Any
    generation_config: Dict[str, Any]

    @torch.no_grad()
    def generate(
        self,
        input_ids: Optional[torch.Tensor] = None,
        attention_mask: Optional[torch.Tensor] = None,
        max_new_tokens: Optional[int] = None,
        max_length: Optional[int] = None,
        do_sample: Optional[bool] = None,
        temperature: Optional[float] = None,
        top_k: Optional[int] = None,
        top_p: Optional[float] = None,
        eos_token_id: Union[int, Sequence[int], None] = UNSET,
        pad_token_id: Optional[int] = UNSET,
        use_cache: bool = True,
        past_key_values: Any = None,
        num_return_sequences: int = 1,
        generator: Optional[torch.Generator] = None,
        streamer: Any = None,
        return_dict_in_generate: bool = False,
        output_scores: bool = False,
        inputs_embeds: Optional[torch.Tensor] = None,
        **kwargs: Any,
    ) -> Union[torch.Tensor, GenerateOutput]:
        """Continue prompts.

        Names and defaults are those of transformers; what is not given is taken from ``generation_config``, then from
        the config. The model should be in evaluation mode.

        Args:
            input_ids: ``[B, T]`` integers, T at least 1.
            attention_mask: ``[B, T]`` of 0 and 1. Pads may be anywhere (left is usual). If not given and there is a
                padding token other than the end tokens, its places in the prompt count as pads.
            max_new_tokens: how many tokens to add; 20 if neither this nor ``max_length`` is given.
            max_length: tokens at the end, prompt and padding included.
            do_sample: draw from the distribution; else the likeliest token is taken each time.
            temperature: logits are divided by it; 1 by default.
            top_k: number of the likeliest tokens from which is drawn; 50 by default, 0 for all.
            top_p: draw from the fewest likeliest tokens that hold this share of the probability; 1 by default.
            eos_token_id: a row ends with this token, or one of these; None for none.
            pad_token_id: what follows the end of a row while others go on; the (first) end token by default.
            use_cache: False reads the whole sequence again for each token; the tokens are the same.
            past_key_values: a `Cache` of the first tokens of ``input_ids``, which are not read again. It is advanced.
            num_return_sequences: draws for each prompt, side by side in the result.
            generator: source of randomness; torch's own if not given.
            streamer: gets the prompt and each new token by ``put`` and then ``end()``, as transformers' streamers do.
            return_dict_in_generate: return a `GenerateOutput`.
            output_scores: with it, return the filtered logits of each step too.
            inputs_embeds: ``[B, T, hidden_size]``, read in place of ``input_ids``. Without those the result holds the
                new tokens only.

        Returns:
            ``[B, T + new]`` int64, or a `GenerateOutput`.

        Raises:
            ValueError: an argument out of range, or a row without a token.
            TypeError: an unknown keyword.
        """
        refuse_unknown(WHO, kwargs, KEYWORDS)
        told = {name: value for name, value in (
            ("do_sample", do_sample), ("temperature", temperature), ("top_k", top_k), ("top_p", top_p),
            ("eos_token_id", eos_token_id), ("pad_token_id", pad_token_id),
        ) if value is not (None if name not in ("eos_token_id", "pad_token_id") else UNSET)}  # fmt: skip
        sampler = self._sampler(told, generator)
        ends = _token_list(self._default(told, "eos_token_id"))
        pad = self._default(told, "pad_token_id")
        alone = inputs_embeds is not None and input_ids is None
        prompt: Any = input_ids if inputs_embeds is None else _beside(input_ids, inputs_embeds)
        known = isinstance(prompt, torch.Tensor) and inputs_embeds is None
        if attention_mask is None and known and pad is not None and pad not in ends:
            attention_mask = (prompt != pad).to(torch.int64)
            attention_mask = None if bool(attention_mask.all()) else attention_mask
        steps = _steps(prompt, max_new_tokens, max_length, self.generation_config)
        _check_prompt(prompt, attention_mask, num_return_sequences, sampler.do_sample)
        if num_return_sequences > 1:
            prompt, attention_mask, inputs_embeds = (
                None if x is None else x.repeat_interleave(num_return_sequences, dim=0)
                for x in (prompt, attention_mask, inputs_embeds)
            )
        pad = pad if pad is not None else (ends[0] if ends else 0)
        loop = _Loop(self, sampler, ends, pad, use_cache, streamer, output_scores and return_dict_in_generate)
        loop.embeds, loop.shown = inputs_embeds, prompt.shape[1] if alone else 0
        sequences, scores, cache = loop.run(prompt, attention_mask, past_key_values, steps)
        sequences = sequences[:, loop.shown :]
        if not return_dict_in_generate:
            return sequences
        return GenerateOutput(sequences, scores, cache)

    def _default(self, told: dict, name: str) -> Any:
        """A setting: as given, or of the generation config, or of the config."""
        if name in told:
            return told[name]
        found = self.generation_config.get(name)
        return found if found is not None else getattr(self.config, name, None)

    def _sampler(self, told: dict, generator: Optional[torch.Generator]) -> Sampler:
        settings = {name: self.generation_config[name] for name in ("do_sample", "temperature", "top_k", "top_p")
                    if self.generation_config.get(name) is not None}  # fmt: skip
        settings = {"do_sample": False, "top_k": TOP_K, **settings}
        settings.update({name: told[name] for name in ("do_sample", "temperature", "top_k", "top_p") if name in told})
        idle = [name for name in ("temperature", "top_k", "top_p") if name in told]
        if idle and not settings["do_sample"]:
            warnings.warn(f"generate: {', '.join(idle)} has no effect without do_sample=True", stacklevel=4)
        return Sampler(generator=generator, **settings)


class _Loop:
    """One call of `generate`."""

    def __init__(self, model: Any, sampler: Sampler, ends: List[int], pad: int, use_cache: bool, streamer: Any,
                 keep_scores: bool) -> None:
        self.model, self.sampler, self.ends, self.pad = model, sampler, ends, pad
        self.use_cache, self.streamer, self.keep_scores = use_cache, streamer, keep_scores
        self.embeds: Optional[torch.Tensor] = None  # of the prompt, where they were given
        self.shown = 0  # where the result begins

    def run(
        self, prompt: torch.Tensor, mask: Optional[torch.Tensor], cache: Any, steps: int
    ) -> Tuple[torch.Tensor, Optional[Tuple[torch.Tensor, ...]], Any]:
        """The sequences, the scores if they are kept, and the cache."""
        batch, length = prompt.shape
        ids = torch.full((batch, length + steps), self.pad, dtype=torch.int64, device=prompt.device)
        ids[:, :length] = prompt
        if self.streamer is not None:
            self.streamer.put(prompt[:, self.shown :].cpu())
        ends = torch.tensor(self.ends, device=prompt.device)
        going = torch.ones(batch, dtype=torch.bool, device=prompt.device)
        read = cache.get_seq_length() if cache is not None else 0
        if read >= length:
            rule, hint = f"must be longer than the {read} tokens in past_key_values", "give the whole sequence"
            raise value_error(WHO, "input_ids", rule, length, hint)
        scores: List[torch.Tensor] = []
        own = cache is None  # and no other code sees it before the end
        for end in range(length, length + steps):
            logits, cache = self._next(ids[:, :end], read, mask if read < length else None, cache, end)
            if own and end == length and cache is not None:
                cache = cache.in_place()
            read = end if self.use_cache else 0
            filtered = self.sampler.filter(logits)
            if self.keep_scores:
                scores.append(filtered)
            token = torch.where(going, self.sampler(filtered), ids[:, end])
            ids[:, end] = token
            if self.streamer is not None:
                self.streamer.put(token.cpu())
            if self.ends:
                going = going & (token.unsqueeze(-1) != ends).all(dim=-1)
                if not bool(going.any()):
                    ids = ids[:, : end + 1]
                    break
        if self.streamer is not None:
            self.streamer.end()
        if own and cache is not None:
            cache.inplace = False
        return ids, tuple(scores) if self.keep_scores else None, cache

    def _next(
        self, ids: torch.Tensor, read: int, mask: Optional[torch.Tensor], cache: Any, end: int
    ) -> Tuple[torch.Tensor, Any]:
        """Logits ``[B, vocab_size]`` after the last real token of those from ``read`` on, and the cache."""
        embeds = None
        if self.embeds is not None and read < self.embeds.shape[1]:
            more = self.model.get_input_embeddings()(ids[:, self.embeds.shape[1] :])
            embeds = torch.cat([self.embeds[:, read:].to(more.dtype), more], dim=1)
        ids = ids[:, read:]
        if mask is not None and mask.shape[1] < end:  # what was generated is real
            mask = torch.cat([mask, mask.new_ones(mask.shape[0], end - mask.shape[1])], dim=1)
        out = self.model.model(
            ids if embeds is None else None, attention_mask=mask, inputs_embeds=embeds, past_key_values=cache,
            use_cache=self.use_cache, return_dict=True,
        )  # fmt: skip
        hidden = out.last_hidden_state
        hidden = hidden[:, -1] if mask is None else hidden[torch.arange(len(ids), device=ids.device), _last(mask, ids)]
        return self.model.lm_head(hidden), out.past_key_values if self.use_cache else None


def _beside(input_ids: Any, inputs_embeds: Any) -> torch.Tensor:
    """The ids that stand for embeddings; zeros where there are none."""
    if not isinstance(inputs_embeds, torch.Tensor) or inputs_embeds.dim() != 3:
        got = list(inputs_embeds.shape) if isinstance(inputs_embeds, torch.Tensor) else type(inputs_embeds).__name__
        raise value_error(WHO, "inputs_embeds", "must be [B, T, hidden_size]", got)
    if input_ids is None:
        return torch.zeros(inputs_embeds.shape[:2], dtype=torch.int64, device=inputs_embeds.device)
    if not isinstance(input_ids, torch.Tensor) or input_ids.shape != inputs_embeds.shape[:2]:
        got = list(input_ids.shape) if isinstance(input_ids, torch.Tensor) else type(input_ids).__name__
        hint = "give the ids of the same tokens, or leave them out"
        raise value_error(WHO, "input_ids", f"must have the shape {list(inputs_embeds.shape[:2])}", got, hint)
    return input_ids


def _last(mask: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Where each row's last real token stands among the tokens that are read."""
    mask = mask[:, mask.shape[1] - ids.shape[1] :]
    places = torch.arange(mask.shape[1], device=ids.device)
    last = torch.where(mask.to(ids.device) != 0, places, torch.full_like(places, -1)).max(dim=1).values
    if bool((last < 0).any()):
        raise value_error(WHO, "attention_mask", "must leave a token to read in each row", mask.sum(dim=1).tolist())
    return last


def _token_list(tokens: Any) -> List[int]:
    if tokens is None:
        return []
    found = tokens.tolist() if isinstance(tokens, torch.Tensor) else tokens
    found = list(found) if isinstance(found, (list, tuple)) else [found]
    if any(isinstance(token, bool) or not isinstance(token, int) for token in found):
        raise value_error(WHO, "eos_token_id", "must be an integer, or a list of integers", tokens)
    return found


def _steps(input_ids: Any, new: Optional[int], length: Optional[int], defaults: dict) -> int:
    """How many tokens to add."""
    if not isinstance(input_ids, torch.Tensor) or input_ids.dim() != 2 or 0 in input_ids.shape:
        got = list(input_ids.shape) if isinstance(input_ids, torch.Tensor) else type(input_ids).__name__
        raise value_error(WHO, "input_ids", "must be integers [B, T] with at least one token", got)
    if new is None and length is None:
        new, length = defaults.get("max_new_tokens"), defaults.get("max_length")
    if new is None and length is None:
        new = NEW_TOKENS
    field, steps = ("max_new_tokens", new) if new is not None else ("max_length", length)
    lowest = 1 if new is not None else input_ids.shape[1] + 1
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < lowest:
        raise value_error(WHO, field, f"must be an integer from {lowest}", steps)
    return steps if new is not None else steps - input_ids.shape[1]


def _check_prompt(ids: torch.Tensor, mask: Any, draws: int, do_sample: bool) -> None:
    if mask is not None and (not isinstance(mask, torch.Tensor) or mask.shape != ids.shape):
        got = list(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise value_error(WHO, "attention_mask", f"must have the prompt's shape {list(ids.shape)}", got)
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise value_error(WHO, "num_return_sequences", "must be a positive integer", draws)
    if draws > 1 and not do_sample:
        hint = "without drawing they would all be equal; set do_sample=True"
        raise value_error(WHO, "num_return_sequences", "must be 1", draws, hint)
