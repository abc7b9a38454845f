"""What the configs of the delta rule's models set and check alike."""

from typing import Any, Mapping, Sequence

from myfla.models.configuration import ModelConfig
from myfla.models.configuration_utils import (
    AttentionConfigBase,
    check_sizes,
    validate_attnres_config,
    validate_loss_config,
)

__all__ = ["RecurrentConfig"]

TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings")


class RecurrentConfig(AttentionConfigBase, ModelConfig):
    """Settings of a model of `RecurrentStack`; a subclass lists them in its constructor, under the official names."""

    def _settle(self, given: Mapping[str, Any], sizes: Sequence[str], extra: Mapping[str, Any]) -> None:
        """Set and check all fields.

        Args:
            given: the constructor's arguments, by ``locals()``.
            sizes: fields that must be positive integers, or None, in addition to those that all models have.
            extra: keywords that are no fields.
        """
        who = type(self).__name__
        fields = {name: value for name, value in given.items() if name not in ("self", "kwargs", "__class__")}
        common = ("hidden_size", "num_hidden_layers", "conv_size", "vocab_size", "intermediate_size")
        check_sizes(who, **{name: fields[name] for name in (*common, *sizes)})
        if "fuse_linear_cross_entropy" in fields:
            losses = {name: fields[name] for name in ("fuse_cross_entropy", "fuse_linear_cross_entropy")}
            validate_loss_config(**losses, who=who)
        validate_attnres_config(fields["attnres_block_size"], who=who)
        self.num_hidden_layers = fields["num_hidden_layers"]  # which `attn` is checked against
        for name, value in fields.items():
            if name not in TOKENS:
                setattr(self, name, value)
        ModelConfig.__init__(self, **{name: fields[name] for name in TOKENS}, **extra)
