"""What is measured: whole sequences, a training step, one token at a time."""

import contextlib
from typing import Any, Callable, Dict, List, NamedTuple

import torch
import torch.nn.functional as F

from app.layers import sample_input
from encoders import build_encoder
from encoders.stack import Encoder

__all__ = ["DTYPES", "KINDS", "Place", "Work", "make_work"]

DTYPES = {"32-true": torch.float32, "64-true": torch.float64, "16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
KINDS = ("prefill", "train", "decode")
CLASSES = 10


class Work(NamedTuple):
    """One thing to measure.

    Attributes:
        kind: ``prefill`` (whole sequences without gradients, keeping the state where the encoder has one), ``train``
            (forward, backward, clipping and a step of AdamW, with a linear head of ten classes), or ``decode`` (one
            more token of each sequence).
        batch, length: sequences in a call, and their tokens (1 in ``decode``).
    """

    kind: str
    batch: int
    length: int

    @property
    def tokens(self) -> int:
        """Tokens in one call."""
        return self.batch * self.length


class Place(NamedTuple):
    """Where and how it runs: a torch device, and a precision as the trainer names it."""

    device: str
    precision: str

    def build(self, encoder: Dict[str, Any]) -> Encoder:
        """A fresh encoder of that config, always with the same weights."""
        torch.manual_seed(0)
        dtype = torch.float32 if self.precision.endswith("mixed") else DTYPES[self.precision]
        return build_encoder(encoder, device=self.device, dtype=dtype)

    def autocast(self) -> Any:
        """The context of a forward pass."""
        if not self.precision.endswith("mixed"):
            return contextlib.nullcontext()
        return torch.autocast(self.device.split(":")[0], dtype=DTYPES[self.precision])

    def wait(self) -> None:
        """Wait until the device has finished."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize()
        elif self.device == "mps":
            torch.mps.synchronize()


def make_work(work: Work, encoder: Encoder, place: Place) -> Callable[[], None]:
    """The call that is measured; data are made once, here.

    Args:
        work: what to do.
        encoder: its weights change in ``train``.
        place: where it was built.
    """
    x = sample_input(encoder, work.batch, work.length)
    makers = {"prefill": _prefill, "train": _train, "decode": _decode}
    return makers[work.kind](encoder, x, place)


def _prefill(encoder: Encoder, x: torch.Tensor, place: Place) -> Callable[[], None]:
    keep = encoder.config.direction == "causal" and not encoder.config.state_weaving

    @torch.inference_mode()
    def call() -> None:
        encoder.eval()
        with place.autocast():
            encoder(x, use_cache=keep)
        place.wait()

    return call


def _train(encoder: Encoder, x: torch.Tensor, place: Place) -> Callable[[], None]:
    weight = next(encoder.parameters())
    head = torch.nn.Linear(encoder.config.hidden_size, CLASSES, device=weight.device, dtype=weight.dtype)
    labels = torch.arange(len(x), device=weight.device) % CLASSES
    parameters: List[torch.Tensor] = [*encoder.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-4)

    def call() -> None:
        encoder.train()
        optimizer.zero_grad(set_to_none=True)
        with place.autocast():
            loss = F.cross_entropy(head(encoder(x).embedding), labels)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        place.wait()

    return call


def _decode(encoder: Encoder, x: torch.Tensor, place: Place) -> Callable[[], None]:
    cache = None

    @torch.inference_mode()
    def call() -> None:
        nonlocal cache
        encoder.eval()
        with place.autocast():
            cache = encoder(x, cache=cache, use_cache=True).cache
        place.wait()

    return call
