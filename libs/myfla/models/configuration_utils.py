"""What the configs of the models check alike."""

import math
import warnings
from typing import Any, Dict, List, Optional

from myfla.utils.errors import value_error

__all__ = [
    "AttentionConfigBase",
    "check_sizes",
    "get_attention_spec",
    "parse_attention_config",
    "refuse_softmax_attention",
    "validate_attnres_config",
    "validate_loss_config",
]


def check_sizes(who: str, **sizes: Any) -> None:
    """Refuse what is not a positive integer; None is allowed."""
    for field, size in sizes.items():
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise value_error(who, field, "must be a positive integer", size)


def refuse_softmax_attention(who: str, attn: Any) -> None:
    """Refuse layers of softmax attention in a model that cannot have them.

    Raises:
        ValueError: ``attn`` names at least one layer.
    """
    if attn is None or attn == [] or (isinstance(attn, dict) and attn.get("layers") == []):
        return
    raise value_error(who, "attn", "must be None", attn, "the official class does not run with attention layers either")


class AttentionConfigBase:
    """A config whose ``attn`` is checked and completed whenever it is set, at its construction and later.

    A subclass sets ``num_hidden_layers`` first.

    Example:
        >>> class Config(AttentionConfigBase):
        ...     num_hidden_layers = 2
        >>> config = Config()
        >>> config.attn = {"layers": [1], "num_heads": 4}
        >>> config.attn["num_kv_heads"]
        4
    """

    num_hidden_layers: int

    @property
    def attn(self) -> Any:
        """None, or which blocks are softmax attention; see `parse_attention_config`."""
        return self.__dict__.get("attn")

    @attn.setter
    def attn(self, value: Any) -> None:
        self.__dict__["attn"] = self._parse_attention_config(value)

    def _parse_attention_config(self, attn: Any) -> Any:
        return parse_attention_config(attn, num_hidden_layers=self.num_hidden_layers, who=type(self).__name__)


def parse_attention_config(attn: Any, *, num_hidden_layers: int, who: str = "config") -> Any:
    """Check which layers are softmax attention, and fill in the official defaults.

    Args:
        attn: None; or a dict with ``layers`` and ``num_heads`` and perhaps ``num_kv_heads``, ``qkv_bias``,
            ``window_size`` and ``rope_theta``; or a list of such. Other keys are kept.
        num_hidden_layers: blocks of the model.
        who: the config's class, for messages.

    Returns:
        None, a dict or a list, as given.

    Raises:
        ValueError: a key that is missing or out of range, or a layer that is named twice.

    Example:
        >>> parse_attention_config({"layers": [1], "num_heads": 4}, num_hidden_layers=2)["num_kv_heads"]
        4
    """
    if attn is None:
        return None
    if not isinstance(attn, (dict, list)):
        raise value_error(who, "attn", "must be null, a dict or a list of dicts", attn)
    taken: List[int] = []
    specs = [_attention_spec(who, spec, num_hidden_layers, taken) for spec in ([attn] if _one(attn) else attn)]
    return specs[0] if _one(attn) else specs


def get_attention_spec(attn: Any, *, layer_idx: int) -> Optional[Dict[str, Any]]:
    """The settings of a layer that is softmax attention; None for one that is not.

    Example:
        >>> get_attention_spec({"layers": [1], "num_heads": 4}, layer_idx=0) is None
        True
    """
    specs = [] if attn is None else [attn] if _one(attn) else attn
    return next((spec for spec in specs if layer_idx in spec["layers"]), None)


def _one(attn: Any) -> bool:
    return isinstance(attn, dict)


def _attention_spec(who: str, given: Any, depth: int, taken: List[int]) -> Dict[str, Any]:
    if not isinstance(given, dict):
        raise value_error(who, "attn", "must hold dicts", given)
    for name in ("layers", "num_heads"):
        if name not in given:
            raise value_error(who, f"attn.{name}", "must be given", "nothing")
    spec = {**given, "qkv_bias": given.get("qkv_bias", False), "window_size": given.get("window_size"),
            "rope_theta": given.get("rope_theta", 10000.0)}  # fmt: skip
    layers, spec["layers"] = spec["layers"], []
    for layer in layers if isinstance(layers, (list, tuple)) else [layers]:
        if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < depth:
            raise value_error(who, "attn.layers", f"must be numbers of layers from 0 to {depth - 1}", layers)
        if layer in taken:
            raise value_error(who, "attn.layers", "must name a layer once", layer)
        taken.append(layer)
        spec["layers"].append(layer)
    if spec.get("num_kv_heads") is None:
        spec["num_kv_heads"] = spec["num_heads"]
    check_sizes(who, **{f"attn.{name}": spec[name] for name in ("num_heads", "num_kv_heads", "window_size")})
    if spec["num_heads"] is None:
        raise value_error(who, "attn.num_heads", "must be a positive integer", None)
    if not isinstance(spec["qkv_bias"], bool):
        raise value_error(who, "attn.qkv_bias", "must be true or false", spec["qkv_bias"])
    theta = spec["rope_theta"]
    if isinstance(theta, bool) or not isinstance(theta, (int, float)) or not 0 < theta < math.inf:
        raise value_error(who, "attn.rope_theta", "must be positive and finite", theta)
    return spec


def validate_loss_config(*, fuse_cross_entropy: bool, fuse_linear_cross_entropy: bool, who: str = "config") -> None:
    """Refuse both fused losses at once, as in fla; warn of the second, whose sums are ordered differently.

    Example:
        >>> validate_loss_config(fuse_cross_entropy=True, fuse_linear_cross_entropy=False)
    """
    if fuse_cross_entropy and fuse_linear_cross_entropy:
        hint = "set fuse_cross_entropy=False"
        raise value_error(who, "fuse_linear_cross_entropy", "excludes fuse_cross_entropy", True, hint)
    if fuse_linear_cross_entropy:
        warnings.warn(
            f"{who}: fuse_linear_cross_entropy saves memory; logits are not returned with a loss", stacklevel=3)


def validate_attnres_config(attnres_block_size: Any, *, who: str = "config") -> None:
    """Refuse a block size other than None, 1 or an even number.

    Example:
        >>> validate_attnres_config(4)
    """
    size = attnres_block_size
    if size is None:
        return
    if isinstance(size, bool) or not isinstance(size, int) or (size != 1 and (size < 2 or size % 2)):
        raise value_error(who, "attnres_block_size", "must be None, 1 or an even number from 2", size)
