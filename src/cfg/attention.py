"""The key ``encoder.attn``: which layers of an encoder are softmax attention, and their settings."""

from types import SimpleNamespace
from typing import Any, Dict, Mapping

from cfg.validation import Fields, config_error, nearest

__all__ = ["check_attention"]

KEY = "encoder.attn"
DEFAULTS: Dict[str, Any] = {"num_kv_heads": None, "qkv_bias": False, "window_size": None, "rope_theta": 10000.0}
KNOWN = ("layers", "num_heads", *DEFAULTS)


def check_attention(attn: Any, hidden_size: int, num_layers: int) -> Dict[str, Any]:
    """The settings with their defaults filled in.

    Args:
        attn: ``layers`` and ``num_heads``, perhaps ``num_kv_heads``, ``qkv_bias``, ``window_size`` and ``rope_theta``.
        hidden_size, num_layers: of the encoder.

    Raises:
        ConfigError: an unknown or missing key, or a value out of range.

    Example:
        >>> check_attention({"layers": [1], "num_heads": 4}, 64, 2)["num_kv_heads"]
        4
    """
    if not isinstance(attn, Mapping):
        raise config_error(KEY, "must be null or hold layers and num_heads", attn)
    for name in attn:
        if name not in KNOWN:
            raise config_error(f"{KEY}.{name}", "must be a setting that exists", attn[name], nearest(name, KNOWN))
    for name in ("layers", "num_heads"):
        if attn.get(name) is None:
            raise config_error(f"{KEY}.{name}", "must be given", None)
    found = SimpleNamespace(**{**DEFAULTS, **attn})
    layers = found.layers if isinstance(found.layers, (list, tuple)) else [found.layers]
    whole = all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < num_layers for i in layers)
    if not whole or len(set(layers)) < len(layers):
        raise config_error(f"{KEY}.layers", f"must be different numbers from 0 to {num_layers - 1}", found.layers)
    found.layers = list(layers)
    fields = Fields(found, KEY)
    if hidden_size % (2 * fields.integer("num_heads", 1, 4096)):
        rule = f"must make heads of an even size from encoder.hidden_size={hidden_size}"
        raise fields.error("num_heads", rule, found.num_heads)
    found.num_kv_heads = found.num_heads if found.num_kv_heads is None else found.num_kv_heads
    if found.num_heads % fields.integer("num_kv_heads", 1, 4096):
        raise fields.error("num_kv_heads", f"must divide {KEY}.num_heads={found.num_heads}", found.num_kv_heads)
    fields.flag("qkv_bias")
    fields.integer("window_size", 1, 1 << 30, optional=True)
    fields.number("rope_theta", 0, 1e12, open_low=True)
    return dict(vars(found))
