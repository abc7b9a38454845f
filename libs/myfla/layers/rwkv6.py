"""The official place of `LoRA`."""

from myfla.layers.lora import LoRA

__all__ = ["LoRA"]
