"""Layers with short convolutions whose compiled forms, for decoding and for training, are tested on them."""

from myfla.layers import DeltaNet, GatedDeltaNet

CONV_LAYERS = {
    "bias, three taps, no gate": (GatedDeltaNet, {
        "hidden_size": 40, "head_dim": 16, "num_heads": 2, "conv_bias": True, "conv_size": 3, "use_gate": False}),
    "negative, sigmoid gate": (GatedDeltaNet, {
        "hidden_size": 40, "head_dim": 8, "num_heads": 3, "allow_neg_eigval": True,
        "output_gate_activation": "sigmoid"}),
    "delta": (DeltaNet, {"hidden_size": 32, "num_heads": 2}),
    "delta, gate": (DeltaNet, {"hidden_size": 48, "num_heads": 3, "use_gate": True, "allow_neg_eigval": True}),
}  # fmt: skip
