"""Large results lie in huge pages and are ordinary tensors."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from myfla.testing import cases
from myfla.utils.pages import LEAST, in_huge_pages

ADVICE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
linux = pytest.mark.skipif(sys.platform != "linux" or not ADVICE.exists(), reason="a Linux with huge pages only")


def advised(address):
    """Whether the mapping that holds an address is marked for huge pages; None where there is no such mapping."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            start, end = (int(x, 16) for x in first.split("-"))
            inside = start <= address < end
        elif inside and first == "VmFlags:":
            return "hg" in line.split()
    return None


@linux
@cases(numbers=[LEAST // 4, LEAST // 4 - (1 << 20)])
def test_only_what_is_mapped_anew_at_every_call_is_marked_and_stays_an_ordinary_tensor(numbers):
    x = torch.empty(numbers)
    assert in_huge_pages(x) is x and x._base is None
    middle = x.data_ptr() + 2 * numbers
    assert advised(middle) == (numbers * 4 >= LEAST)
    assert float(x.fill_(2.0).sum()) == 2.0 * numbers
    assert x.resize_(3).tolist() == [2.0] * 3


@linux
def test_a_large_result_is_marked_and_nothing_is_left_of_it():
    """In a process of its own: elsewhere another large result may come to lie where this one was."""
    lines = (
        "import torch",
        "from myfla.ops.gated_delta_rule import chunk_gated_delta_rule",
        "from myfla.utils.pages import LEAST",
        "from test_pages import advised",
        "q = k = v = torch.zeros(1, LEAST // 4 // 64, 1, 64)",
        "o, _ = chunk_gated_delta_rule(q, k, v, q[..., 0], q[..., 0], backend='torch')",
        "middle = o.data_ptr() + 2 * o.numel()",
        "assert advised(middle) and not o.any() and o._base is None",
        "del o",
        "assert not advised(middle)",
    )
    here = Path(__file__).resolve()
    places = os.pathsep.join(map(str, (here.parent, here.parents[3] / "libs")))
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], env=dict(os.environ, PYTHONPATH=places),
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
