"""Operations of compiled graphs are named after their code: a compiler's cache never meets those of another release."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from myfla.ops._delta.version import op_name, source_digest

REPOSITORY = Path(__file__).resolve().parents[3]
PROGRAM = """
import sys, torch
from myfla.ops._delta import version
if sys.argv[1] != "same":
    version.source_digest = lambda: "another"
from myfla.ops.gated_delta_rule import chunk_gated_delta_rule as rule
from torch._dynamo.utils import counters
q = k = v = torch.ones(1, 20, 1, 16); g = beta = torch.zeros(1, 20, 1)
torch.compile(lambda *x: rule(*x)[0])(q, k, v, g, beta)
print(counters["inductor"]["fxgraph_cache_hit"], counters["inductor"]["fxgraph_cache_miss"])
"""


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    source_digest.cache_clear()
    return source_digest(folder, "1")


def test_a_changed_renamed_added_or_removed_file_gives_another_digest(tmp_path):
    first = write(tmp_path, a="x = 1\n", b="")
    found = [first, write(tmp_path, a="x = 2\n"), write(tmp_path, c="")]
    (tmp_path / "c.py").rename(tmp_path / "d.py")
    found.append(write(tmp_path))
    (tmp_path / "d.py").unlink()
    (tmp_path / "b.py").unlink()
    found.append(write(tmp_path))
    assert len(set(found)) == len(found)
    assert write(tmp_path, a="x = 1\n", b="") == first


def test_another_release_gives_another_digest(tmp_path):
    assert source_digest(tmp_path, "1") != source_digest(tmp_path, "2")


@pytest.mark.skipif(not hasattr(torch.library, "custom_op"), reason="operations of graphs came with PyTorch 2.4")
def test_every_operation_of_the_library_carries_the_digest_of_its_code():
    import myfla.ops._delta.backends  # noqa: F401  (registers them)

    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("myfla::")]
    assert any(name == op_name("chunk_gated_delta") for name in names)
    assert [name for name in names if not name.endswith(source_digest())] == []


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(torch.library, "register_vmap"), reason="the cache's counters came with PyTorch 2.5")
def test_a_compilers_cache_serves_the_same_code_and_no_other(tmp_path):
    found = []
    for code in ("same", "same", "another"):
        environment = dict(os.environ, TORCHINDUCTOR_CACHE_DIR=str(tmp_path), TORCHINDUCTOR_FX_GRAPH_CACHE="1")
        environment["PYTHONPATH"] = str(REPOSITORY / "libs")
        ran = subprocess.run(
            [sys.executable, "-c", PROGRAM, code], env=environment, capture_output=True, text=True, check=True
        )
        found.append(ran.stdout.split())
    assert found == [["0", "1"], ["1", "0"], ["0", "1"]]
