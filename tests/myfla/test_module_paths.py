"""Import paths of fla 0.5 and 0.6 lead to the same objects."""

from importlib import import_module

from myfla import modules
from myfla.modules import convolution
from myfla.testing import cases

NORMS = ["fused_norm_gate", "l2norm", "layernorm", "layernorm_gated"]
CONVOLUTIONS = [
    "causal_conv1d", "causal_conv1d.ops", "conv", "conv.causal_conv1d", "conv.short_conv", "conv.triton",
    "conv.triton.ops",
]


@cases(name=NORMS)
def test_norms_of_both_trees_are_the_same_objects(name):
    old, new = import_module(f"myfla.modules.{name}"), import_module(f"myfla.modules.norm.{name}")
    assert old.__all__ == new.__all__ and len(old.__all__) > 3
    assert all(getattr(old, symbol) is getattr(new, symbol) for symbol in old.__all__)


@cases(name=CONVOLUTIONS)
def test_convolution_of_all_trees_is_the_same_object(name):
    module = import_module(f"myfla.modules.{name}")
    assert all(getattr(module, symbol) is getattr(convolution, symbol) for symbol in convolution.__all__)


def test_the_old_package_keeps_its_function():
    import_module("myfla.modules.conv.causal_conv1d")
    from myfla.modules.conv import causal_conv1d

    assert causal_conv1d is convolution.causal_conv1d


def test_norm_package_and_modules_package_agree():
    norm = import_module("myfla.modules.norm")
    for name in set(norm.__all__) & set(modules.__all__):
        assert getattr(norm, name) is getattr(modules, name)
    assert {"GroupNorm", "RMSNorm", "FusedRMSNormGated", "L2Norm"} <= set(norm.__all__) & set(modules.__all__)
