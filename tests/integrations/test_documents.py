"""The documents' examples with transformers run as they stand, with a small model in the place of a large one."""

import re

import pytest
import torch

pytest.importorskip("transformers", minversion="5.15")

from transformers.models.qwen3_next import modeling_qwen3_next as modeling

from app_runs import ROOT
from hf_small_models import build, plain_transformers, tokens

PAGES = [ROOT / "README.md", ROOT / "docs" / "transformers.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_the_example_runs_on_these_ops_and_gives_transformers_tokens(page, tmp_path, monkeypatch):
    (block,) = [block for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
                if "transformers" in block]  # fmt: skip
    build("qwen3_next").save_pretrained(tmp_path / "qwen3_next")
    monkeypatch.chdir(tmp_path)
    before, used = modeling.torch_chunk_gated_delta_rule, []

    class Watched(modeling.Qwen3NextForCausalLM):
        def generate(self, *args, **kwargs):
            used.append(modeling.torch_chunk_gated_delta_rule)
            return super().generate(*args, **kwargs)

    names = {"input_ids": tokens(1, 6)}
    exec(block.replace("AutoModelForCausalLM.", "Watched."), {**names, "Watched": Watched}, names)
    assert used[0] is not before and modeling.torch_chunk_gated_delta_rule is before
    with plain_transformers("qwen3_next"):
        model = modeling.Qwen3NextForCausalLM.from_pretrained("qwen3_next")
        assert torch.equal(names["tokens"], model.generate(names["input_ids"], max_new_tokens=20))
