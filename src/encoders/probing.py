"""How fast the layers of an encoder forget, and how strongly they write.

`probe` runs the encoder once and lets the strategy report the gates for the input of each layer.
"""

from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
import torch.nn as nn

from encoders.gates import Gates
from encoders.stack import Encoder

__all__ = ["LayerGates", "probe"]


class LayerGates(NamedTuple):
    """The gates of one layer.

    Attributes:
        layer: its number.
        backward: whether it reads sequences from their end.
        gates: ``[tokens, heads, channels]`` each, for real tokens only, in the order in which the layer reads them.
    """

    layer: int
    backward: bool
    gates: Gates


def probe(
    encoder: Encoder,
    x: torch.Tensor,
    lengths: Union[torch.Tensor, Sequence[int], None] = None,
    cu_seqlens: Optional[torch.Tensor] = None,
) -> List[LayerGates]:
    """The gates of every layer for a batch.

    Args:
        encoder: an encoder; it runs in eval mode without gradients, and its mode is restored.
        x, lengths, cu_seqlens: as for `Encoder.forward`.

    Returns:
        One entry for each layer and direction; none if the strategy does not report gates.

    Raises:
        ValueError: as `Encoder.forward`.

    Example:
        >>> from encoders import build_encoder
        >>> encoder = build_encoder({"name": "gated_deltanet", "input_size": 3, "num_layers": 1})
        >>> (only,) = probe(encoder, torch.randn(2, 5, 3))
        >>> only.gates.log_decay.shape
        torch.Size([10, 4, 1])
    """
    seen: Dict[int, Any] = {}
    blocks: List[Tuple[int, bool, nn.Module, nn.Module]] = []
    for backward, stack in ((False, encoder.blocks), (True, encoder.backward_blocks)):
        for i, block in enumerate(stack):
            mixer = getattr(block, "mixer", None)
            if isinstance(mixer, nn.Module):
                blocks.append((i, backward, block, mixer))
    handles = [part.register_forward_pre_hook(_noter(seen, part, place))
               for _, _, block, mixer in blocks for part, place in ((block, 1), (mixer, 0))]
    training = encoder.training
    try:
        with torch.no_grad():
            encoder.eval()(x, lengths=lengths, cu_seqlens=cu_seqlens)
            asked = [(i, backward, encoder.strategy.gates(mixer, seen[id(mixer)], seen[id(block)].cu_seqlens))
                     for i, backward, block, mixer in blocks if id(mixer) in seen]
    finally:
        encoder.train(training)
        for handle in handles:
            handle.remove()
    return [LayerGates(i, backward, gates._replace(log_decay=gates.log_decay.flatten(0, 1),
                                                   strength=gates.strength.flatten(0, 1)))
            for i, backward, gates in asked if gates is not None]


def _noter(seen: Dict[int, Any], part: nn.Module, place: int) -> Any:
    """A hook that keeps one argument of a part: the `StackCall` of a block, or the input of a mixer."""

    def note(module: nn.Module, given: Any) -> None:
        seen[id(part)] = given[place]

    return note
