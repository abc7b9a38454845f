"""Figures that the documents say in words are those of the tables: who measures again is told what to write."""

import re

import pytest

from app_runs import ROOT
from myfla.testing import cases

SPEED = (ROOT / ".doc" / "90_operations" / "myfla_gated_deltanet.md").read_text(encoding="utf-8")
NATIVE = (ROOT / "docs" / "native.md").read_text(encoding="utf-8")
PAGES = {name: re.sub(r"\s+", " ", (ROOT / name).read_text(encoding="utf-8"))
         for name in ("README.md", "CHANGELOG.md", "docs/transformers.md")}  # fmt: skip
NUMBER = r"(\d+(?:\.\d+)?)"
DELTA = "gated delta rule, float32"


def table(text, section, title):
    """``{row: {column: milliseconds}}`` of one table of a section that `benchmarks` writes."""
    block = re.search(rf"<!-- benchmark cpu {section} -->(.*?)<!-- end", text, re.DOTALL).group(1)
    lines = re.search(rf"^\| {re.escape(title)} \|.*?(?=\n\n|\Z)", block, re.DOTALL | re.MULTILINE).group(0)
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines.splitlines()]
    found = {}
    for name, *cells in rows:
        values = {column: re.match(NUMBER, cell) for column, cell in zip(head[1:], cells)}
        found[name] = {column: float(match.group(0)) for column, match in values.items() if match}
    return found


def ratios(rows, slow, fast, work):
    """How many times as fast, in every row of a work that has both."""
    return [row[slow] / row[fast] for name, row in rows.items() if f", {work}, " in name and {slow, fast} <= set(row)]


def span(values):
    return min(values), max(values)


def gpu(column):
    """The multiples in brackets of one column of the table on a GPU."""
    rows = re.findall(r"^\| \d+ x \d+ x \d+ x \d+ \|(.*)\|$", SPEED, re.MULTILINE)
    return [float(re.search(rf"\({NUMBER}x\)", row.split("|")[column]).group(1)) for row in rows]


def one(rows, name, slow, fast):
    (row,) = [row for title, row in rows.items() if title.startswith(name)]
    return (row[slow] / row[fast],)


OPS, LAYER = table(SPEED, "ops", DELTA), table(SPEED, "layer", "GatedDeltaNet layer, float32")
RULE, QWEN = table(NATIVE, "native", DELTA), table(NATIVE, "native", "Qwen3-Next-like model, float32")
MAMBA = table(SPEED, "hf_mamba", "models of transformers, float32")
QWEN_TOO = table(SPEED, "hf", "Qwen3-Next-like model, float32")
MIXED = {name: row for name, row in MAMBA.items() if not name.startswith(("mamba2", "lfm2"))}
FORWARD, BOTH, OURS, NATIVE_OURS = "forward", "forward + backward", "myfla", "myfla native"
CHUNK, OPERATOR, HF = "transformers chunk", "onnxruntime", "transformers"


def qwen(work):
    return ratios(QWEN, HF, OURS, work) + ratios(QWEN_TOO, HF, OURS, work)


CLAIMS = {
    "README.md": {
        "N to N times as fast as our code forward": span(gpu(0)),
        "as our code forward and N to N times in training": span(gpu(1)),
        "same results, N to N times as fast forward": span(ratios(OPS, CHUNK, OURS, FORWARD)),
        "as fast forward and N to N times in training": span(ratios(OPS, CHUNK, OURS, BOTH)),
        "width 128 an LSTM trains N times": one(LAYER, "8 x 128,", OURS, "nn.LSTM"),
        "our layer trains N times as fast as a GRU": one(LAYER, "1 x 2048,", "nn.GRU", OURS),
        "a GRU and N times as fast as an LSTM": one(LAYER, "1 x 2048,", "nn.LSTM", OURS),
        "it is N to N times as fast as our plain PyTorch": span(ratios(OPS, OURS, OPERATOR, FORWARD)),
        "they are N to N times as fast as the operator": span(ratios(RULE, OPERATOR, NATIVE_OURS, FORWARD)),
    },
    "CHANGELOG.md": {
        "forward is N to N times": span(ratios(RULE, OURS, NATIVE_OURS, FORWARD)),
        "forward and backward N to N times": span(ratios(RULE, OURS, NATIVE_OURS, BOTH)),
    },
    "docs/transformers.md": {
        "| Qwen3-Next-like | N to N times": span(qwen("prefill")),
        "| Qwen3-Next-like | ... | N times": (sum(qwen("decode")) / 2,),
        "| Qwen3-Next-like | ... | ... | N times": qwen("train"),
        "| mamba2 | N times": one(MAMBA, "mamba2, 1 x 2048, prefill", HF, OURS),
        "| mamba2 | ... | N times": one(MAMBA, "mamba2, 1 x 32", HF, OURS),
        "| mamba2 | ... | ... | N times": one(MAMBA, "mamba2, 1 x 2048, train", HF, OURS),
        "zamba2 | N to N times": span(ratios(MIXED, HF, OURS, "prefill")),
        "zamba2 | ... | N to N times": span(ratios(MIXED, HF, OURS, "decode")),
        "zamba2 | ... | ... | N to N times": span(ratios(MIXED, HF, OURS, "train")),
    },
}


@cases(claim=[(page, words) for page in CLAIMS for words in CLAIMS[page]])
def test_a_figure_in_words_is_that_of_its_table(claim):
    page, words = claim
    pattern = re.escape(words).replace("N\\ ", NUMBER + "\\ ").replace(re.escape("..."), "[^|]*")
    found = re.findall(pattern, PAGES[page])
    assert len(found) == 1, f"{page} must say once: {words}"
    said = [float(number) for number in (found[0] if isinstance(found[0], tuple) else found)]
    exact = CLAIMS[page][words]
    assert len(said) == len(exact) and all(abs(a - b) < 0.051 for a, b in zip(said, exact)), (
        f"{page} says {said}, its tables {[round(value, 3) for value in exact]}: {words}")  # fmt: skip


def test_a_table_is_read_as_it_stands():
    rows = "| r, f | x | y |\n|---|---:|---:|\n| 1 x 2, forward, 1 thread | 2.00 | 1.00 (0.50x) |\n"
    read = table(f"<!-- benchmark cpu a -->\nMeasured.\n\n{rows}<!-- end a -->", "a", "r, f")
    assert read == {"1 x 2, forward, 1 thread": {"x": 2.0, "y": 1.0}} and ratios(read, "x", "y", "forward") == [2.0]
    with pytest.raises(AttributeError):
        table("no table", "a", "r, f")
