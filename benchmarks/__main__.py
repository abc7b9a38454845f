"""``python -m benchmarks [ops rwkv7 decode layer family varlen packing scaling startup hf ...]``: see ``--help``."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import torch

ROOT = Path(__file__).resolve().parents[1]
try:
    import myfla  # noqa: F401
except ImportError:  # a bare checkout
    sys.path.insert(0, str(ROOT / "libs"))

from benchmarks import machine, report  # noqa: E402
from benchmarks.cases_scaling import SIDES  # noqa: E402
from benchmarks.document import insert  # noqa: E402
from benchmarks.hf_mamba import MODELS  # noqa: E402
from benchmarks.inputs import WORKS  # noqa: E402
from benchmarks.measure import Missing  # noqa: E402
from benchmarks.peers_family import FAMILY  # noqa: E402
from benchmarks.plots import draw_scaling  # noqa: E402
from benchmarks.rows import Options, Row  # noqa: E402
from benchmarks.sections import SECTIONS  # noqa: E402


def parse(arguments: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure myfla and other implementations in one process, in turn. Each line gives the median "
        "(and least) of all rounds: process time on one thread of a CPU, else wall time, on a GPU by its events; and "
        "'times ours', the tokens per second, the share of the floor (floors.py), the peak memory. What cannot be run "
        "is listed as missing.",
    )
    choice = f"any of {' '.join(SECTIONS['cpu'])}; all by default"
    parser.add_argument("sections", nargs="*", metavar="section", help=choice)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", default="1", help="of a CPU, for ops, rwkv7, decode, layer and hf; e.g. 1,2")
    parser.add_argument("--rounds", type=int, help="samples of each side (7; with --quick 2)")
    parser.add_argument("--patience", type=float, default=20.0, help="seconds after which a side gets no more samples")
    parser.add_argument("--compile", action="store_true", help="also time torch.compile")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parts = (*SIDES, *WORKS, *MODELS, *FAMILY)
    only = "of scaling, hf_mamba and family only these parts: " + ", ".join(map(repr, parts))
    parser.add_argument("--only", nargs="+", default=(), choices=parts, metavar="PART", help=only)
    parser.add_argument("--quick", action="store_true", help="tiny shapes: does everything run?")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "benchmarks", help="folder for JSON and plots")
    parser.add_argument("--markdown", type=Path, help="document whose marked tables are replaced")
    parser.add_argument("--results", type=Path, nargs="+", metavar="JSON", help="show these instead of measuring")
    options = parser.parse_args(arguments)
    known = SECTIONS[options.device]
    options.sections = options.sections or list(known)
    wrong = [section for section in options.sections if section not in known]
    if wrong:
        parser.error(f"unknown section {wrong[0]!r} on {options.device}; choose from {', '.join(known)}")
    if options.device == "cuda" and not options.results and not torch.cuda.is_available():
        parser.error("--device cuda: this PyTorch sees no CUDA GPU")
    return options


def main(arguments: Optional[Sequence[str]] = None) -> None:
    given = parse(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    if given.results:
        parts = [json.loads(path.read_text(encoding="utf-8")) for path in given.results]
        facts, device = parts[0]["machine"], parts[0]["options"]["device"]  # all are one machine's
        rows = [Row(**row) for part in parts for row in part["rows"]]
        print(machine.summary(facts))
    else:
        facts, device = machine.describe(), given.device
        print(machine.summary(facts), flush=True)
        rows = _measure(given, facts)
    if any(row.section == "scaling" for row in rows):
        try:
            print("\n" + "\n".join(f"wrote {path}" for path in draw_scaling(rows, given.out)))
        except Missing as error:
            print(f"\nno plots: {error}")
    if given.markdown:
        head = f"Measured on {machine.summary(facts)}."
        sections = dict.fromkeys(row.section for row in rows)
        own = {section: [row for row in rows if row.section == section] for section in sections}
        insert(given.markdown, {f"{device} {name}": f"{head}\n\n{report.markdown(own[name])}" for name in own})
        print(f"updated {given.markdown}")


def _measure(given: argparse.Namespace, facts: Dict[str, Any]) -> List[Row]:
    """Run the sections, print each case when it is done, and keep the JSON up to date."""
    options = Options(
        device=given.device,
        threads=[int(count) for count in given.threads.split(",")],
        quick=given.quick,
        rounds=given.rounds or (2 if given.quick else 7),
        patience=given.patience,
        compile=given.compile,
        memory=not given.no_memory,
        only=given.only,
    )
    path = given.out / f"benchmarks_{options.device}.json"
    rows: List[Row] = []
    for section in given.sections:
        print(f"\n==== {section} ====", flush=True)
        for case in SECTIONS[options.device][section](options):
            rows += case
            print(report.table(case), flush=True)
            content = {"machine": facts, "options": vars(options), "rows": [row.to_json() for row in rows]}
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(f"\nwrote {path}")
    return rows


if __name__ == "__main__":
    main()
