"""How the next token is chosen from its logits."""

from typing import Any, Optional

import torch

from myfla.utils.errors import value_error

__all__ = ["Sampler"]


class Sampler:
    """Greedy choice, or a draw from logits that are scaled and cut.

    Args:
        do_sample: draw; otherwise the largest logit is chosen and the other arguments have no effect.
        temperature: divisor of the logits.
        top_k: draw from this number of the largest logits only; 0 or None for all.
        top_p: draw from the smallest set of the largest logits that has this share of the probability; 1 or None for
            all.
        generator: source of randomness; torch's own if not given.

    Raises:
        ValueError: a value out of range.

    Example:
        >>> sampler = Sampler(do_sample=True, top_k=1)
        >>> sampler(sampler.filter(torch.tensor([[0.0, 2.0, 1.0]]))).tolist()
        [1]
    """

    def __init__(
        self,
        do_sample: bool = False,
        temperature: Optional[float] = 1.0,
        top_k: Optional[int] = None,
        top_p: Optional[float] = 1.0,
        generator: Optional[torch.Generator] = None,
    ) -> None:
        self.do_sample, self.generator = do_sample, generator
        self.temperature = 1.0 if temperature is None else temperature
        self.top_k, self.top_p = top_k or 0, 1.0 if top_p is None else top_p
        if not _number(self.temperature) or not 0 < self.temperature < float("inf"):
            hint = "for the most likely token each time use do_sample=False"
            raise value_error("generate", "temperature", "must be a positive number", temperature, hint)
        if isinstance(self.top_k, bool) or not isinstance(self.top_k, int) or self.top_k < 0:
            raise value_error("generate", "top_k", "must be an integer from 0", top_k)
        if not _number(self.top_p) or not 0 < self.top_p <= 1:
            raise value_error("generate", "top_p", "must be above 0 and at most 1", top_p)

    def filter(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits ``[B, vocab_size]`` in float32, with minus infinity where no token may be drawn."""
        logits = logits.to(torch.float32)
        if not self.do_sample:
            return logits
        if self.temperature != 1:
            logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            lowest = logits.topk(self.top_k, dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < lowest, -float("inf"))
        if self.top_p < 1:
            ordered, order = logits.sort(dim=-1, descending=True)
            shares = ordered.softmax(dim=-1)
            # A token goes if those before it hold the share already, so the first always stays.
            gone = shares.cumsum(dim=-1) - shares >= self.top_p
            logits = logits.masked_fill(gone.scatter(-1, order, gone), -float("inf"))
        return logits

    def __call__(self, filtered: torch.Tensor) -> torch.Tensor:
        """A token ``[B]`` for each row of filtered logits."""
        if not self.do_sample:
            return filtered.argmax(dim=-1)
        return torch.multinomial(filtered.softmax(dim=-1), 1, generator=self.generator).squeeze(-1)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
