"""Layers with short convolutions whose compiled forms, for decoding and for training, are tested on them."""

from myfla.layers import DeltaNet, GatedDeltaNet, KimiDeltaAttention

CONV_LAYERS = {
    "bias, three taps, no gate": (GatedDeltaNet, {
        "hidden_size": 40, "head_dim": 16, "num_heads": 2, "conv_bias": True, "conv_size": 3, "use_gate": False}),
    "negative, sigmoid gate": (GatedDeltaNet, {
        "hidden_size": 40, "head_dim": 8, "num_heads": 3, "allow_neg_eigval": True,
        "output_gate_activation": "sigmoid"}),
    "delta": (DeltaNet, {"hidden_size": 32, "num_heads": 2}),
    "delta, gate": (DeltaNet, {"hidden_size": 48, "num_heads": 3, "use_gate": True, "allow_neg_eigval": True}),
}  # fmt: skip
LAYERS = {
    "plain": (GatedDeltaNet, {"hidden_size": 64, "head_dim": 16, "num_heads": 2}),
    "odd sizes, grouped": (GatedDeltaNet, {
        "hidden_size": 21, "head_dim": 7, "num_heads": 2, "num_v_heads": 6, "expand_v": 2}),
    **CONV_LAYERS,
}  # fmt: skip
KDA_LAYERS = {
    "kda": (KimiDeltaAttention, {"hidden_size": 40, "head_dim": 16, "num_heads": 2}),
    "kda, bounded, grouped": (KimiDeltaAttention, {
        "hidden_size": 21, "head_dim": 7, "num_heads": 2, "num_v_heads": 6, "expand_v": 2, "safe_gate": True,
        "lower_bound": -5.0, "conv_bias": True, "conv_size": 3, "allow_neg_eigval": True}),
}  # fmt: skip
WAYS = ["whole", "between"]  # by products of the library, by PyTorch's
TRAINED = {
    **{f"{name}, {way}": (made, way) for name, made in LAYERS.items() for way in WAYS},
    **{name: (made, "between") for name, made in KDA_LAYERS.items()},
}
"""Cases of training: a class, its settings, and the way that a call takes."""
