"""The documents' examples with transformers run as they stand, with small models in the place of large ones."""

import re

import pytest
import torch

pytest.importorskip("transformers", minversion="5.15")

from app_runs import ROOT
from hf_small_models import build, tokens

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = [(path.name, block) for path in PAGES
            for block in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
            if "transformers" in block]  # fmt: skip


@pytest.mark.parametrize(("page", "block"), EXAMPLES, ids=[page for page, _ in EXAMPLES])
def test_it_runs(page, block, tmp_path, monkeypatch):
    build("qwen3_next").save_pretrained(tmp_path / "qwen3_next")
    monkeypatch.chdir(tmp_path)
    names = {"input_ids": tokens(1, 6)}
    exec(block, names)
    assert names["tokens"].shape[1] > 6 and names["tokens"].dtype == torch.long


def test_there_are_examples():
    assert any(page == "README.md" for page, _ in EXAMPLES)
