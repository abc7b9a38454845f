"""RWKV-7 models (arXiv 2503.14456)."""

from myfla.models.rwkv7.configuration_rwkv7 import RWKV7Config
from myfla.models.rwkv7.feed_forward import RWKV7FeedForward
from myfla.models.rwkv7.modeling_rwkv7 import RWKV7ForCausalLM, RWKV7Model

__all__ = ["RWKV7Config", "RWKV7FeedForward", "RWKV7ForCausalLM", "RWKV7Model"]
