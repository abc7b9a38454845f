"""Every name and signature of fla 0.6.0 that this library has too, against those recorded from the official package.

What is absent or different is written down here, and nothing else is: `tests/support/official_signatures.py` records.
"""

import importlib
import json
import re
import warnings

import pytest

from app_runs import ROOT
from myfla.testing import cases
from official_signatures import GOLDEN, describe, module_names

RECORDED = json.loads(GOLDEN.read_text(encoding="utf-8"))
MODULES = RECORDED["modules"]
DEFINED = RECORDED["definitions"]

# Packages that export what each of their families defines: of these, what is here must be exported here too.
FAMILIES = ("", "layers", "models", "ops")
ABSENT = {
    "BitLinear", "CausalConv1dFunctionCP", "FLAUnsupportedCacheGenerationMixin", "FastCausalConv1dFn", "FusedBitLinear",
    "FusedCrossEntropyLoss", "FusedKLDivLoss", "FusedLinearCrossEntropyLoss", "ImplicitLongConvolution",
    "LongConvolution", "NormParallel", "PositionalEmbedding", "causal_conv1d_cp", "causal_conv1d_cuda",
    "chunk_iplr_delta_rule", "fast_causal_conv1d_fn", "fft_conv", "fused_recurrent_iplr_delta_rule",
}  # fmt: skip
"""Names that official modules export and that are not here; the migration guide says so."""

HALVES = re.compile(r"_(fwd|bwd)$|Function$")
"""The two halves of an official kernel, and the autograd function around them."""

INTERNAL = {"backends", "utils", "ops.utils", "ops.common"}
"""Packages whose names serve the official kernels, or a family that is not here."""

DIFFERENT = {
    "TokenShift.backward": "names of gradients, which autograd hands over by place",
    "fused_gdn_gate.output_dtype": "None is float32, or float64 for float64 input",
    "naive_gdn_gate.output_dtype": "None is float32, or float64 for float64 input",
    "fused_kda_gate.output_dtype": "None is float32, or float64 for float64 input",
    "naive_kda_gate.output_dtype": "None is float32, or float64 for float64 input",
    "naive_kda_lowerbound_gate.output_dtype": "None is float32, or float64 for float64 input",
    "FLALayer.lazy_initialization": "transformers' own caches need it",
    "FLALayer.reorder_cache": "the cache's, of all layers at once",
    "FLALayer.batch_repeat_interleave": "the cache's, of all layers at once",
    "FLALayer.batch_select_indices": "the cache's, of all layers at once",
    "Mamba2.backend": "the official names of its convolution's code, 'cuda' and 'triton', are taken as 'auto'",
    "Mamba2.cuda_kernels_forward": "the two halves of the official forward pass",
    "Mamba2.torch_forward": "the two halves of the official forward pass",
    "prepare_inputs_for_generation": "a hook of transformers' generation, which myfla.models.hf has",
}
"""Members and defaults that are absent or other, and why."""


def ours(path):
    """The module of the same path, or None."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(f"myfla.{path}" if path else "myfla")
        except ModuleNotFoundError:
            return None


def differences(who, official, mine):
    """What a caller who follows the official signature would find other here."""
    if official is None or mine is None:
        return []
    named = {parameter[0]: parameter for parameter in mine}
    places = [parameter for parameter in mine if parameter[1] in ("positional_only", "positional_or_keyword")]
    found, place = [], 0
    for name, kind, default in official:
        if kind.startswith("var_"):
            continue
        if kind != "keyword_only":
            if place >= len(places) or places[place][0] != name:
                got = places[place][0] if place < len(places) else "nothing"
                found.append((who, f"argument {place} is {got}, not {name}"))
                place += 1
                continue
            place += 1
        if name not in named:
            found.append((f"{who}.{name}", "absent"))
        elif default is not None and named[name][2] != default:
            found.append((f"{who}.{name}", f"default {named[name][2]}, not {default}"))
    return found


def member(kind, name):
    """A class's member as `describe` gives it; None where there is none. What PyTorch defines is not compared."""
    value = getattr(kind, name, None)
    if value is None and not hasattr(kind, name):
        return None
    if (getattr(value, "__module__", None) or "").split(".")[0] == "torch":
        return "attribute"
    return (describe(value, "") or {}).get("arguments", "attribute") if callable(value) else "attribute"


def compared(name, official, value):
    """All differences of a function or class."""
    if "arguments" in official:
        return differences(name, official["arguments"], (describe(value, "myfla") or {}).get("arguments"))
    found = []
    for part, arguments in official["members"].items():
        mine = member(value, part)
        if mine is None:
            found.append((f"{name}.{part}" if part != "prepare_inputs_for_generation" else part, "absent"))
        elif isinstance(arguments, list) and isinstance(mine, list):
            mine = [parameter for parameter in mine if parameter[0] not in ("self", "cls")]
            found += differences(f"{name}.{part}" if part != "__init__" else name, arguments, mine)
    return found


def test_the_record_is_of_the_version_that_is_promised():
    assert RECORDED["version"] == "0.6.0" and len(MODULES) > 80 and len(DEFINED) > 250


def test_the_record_has_every_module_that_both_packages_have():
    assert {path for path in module_names() if path in RECORDED["paths"]} <= MODULES.keys()


@cases(path=sorted(MODULES))
def test_signatures_are_the_official_ones(path):
    module, found = ours(path), []
    if module is None:
        pytest.skip("no module of this name here")
    for name, place in MODULES[path]["names"].items():
        if hasattr(module, name) and place in DEFINED:
            found += compared(name, DEFINED[place], getattr(module, name))
    assert [one for one in found if one[0] not in DIFFERENT] == []


@cases(path=sorted(path for path in MODULES if MODULES[path]["exports"] and path not in (*FAMILIES, *INTERNAL)))
def test_what_an_official_module_exports_is_here_or_written_down(path):
    module = ours(path)
    here = {name for name, place in MODULES[path]["names"].items() if place.split(".")[0] == path.split(".")[0]}
    absent = {name for name in here if not hasattr(module, name) and not HALVES.search(name)}
    assert absent <= ABSENT


@cases(path=FAMILIES)
def test_the_packages_export_what_their_modules_have(path):
    """A name of the official package that this library has where it is defined can be had from the package too."""
    module = ours(path)
    for name, place in MODULES[path]["names"].items():
        home = ours(place.rsplit(".", 1)[0])
        if home is not None and hasattr(home, name):
            assert getattr(module, name) is getattr(home, name), name


def test_every_difference_is_still_one():
    seen = set()
    for path, recorded in MODULES.items():
        for name, place in recorded["names"].items():
            if ours(path) is not None and hasattr(ours(path), name) and place in DEFINED:
                seen |= {who for who, _ in compared(name, DEFINED[place], getattr(ours(path), name))}
    assert DIFFERENT.keys() <= seen
    everywhere = {name for recorded in MODULES.values() for name in recorded["names"]}
    assert everywhere >= ABSENT


def test_the_migration_guide_names_what_is_absent():
    guide = (ROOT / "docs" / "migrating_from_fla.md").read_text(encoding="utf-8")
    missing = sorted(name for name in ABSENT if f"`{name}`" not in guide)
    assert missing == []
    for name in ("prepare_inputs_for_generation", "FLAUnsupportedCacheGenerationMixin", "lazy_initialization"):
        assert f"`{name}`" in guide, name
