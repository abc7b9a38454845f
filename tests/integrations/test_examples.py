"""The examples in the docstrings run."""

import doctest
import importlib

import pytest
import torch

from myfla.testing import cases

NEED_TRANSFORMERS = ("hf_models", "transformers")


@cases(name=["hf_layers", "hf_models", "hf_rules", "packing", "patch", "transformers"])
def test_docstring_examples_run(name):
    if name in NEED_TRANSFORMERS:
        pytest.importorskip("transformers", minversion="5.15")
    module = importlib.import_module(f"myfla.integrations.{name}")
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.attempted and not result.failed
