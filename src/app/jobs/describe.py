"""``job=describe``: what is installed, and the parts of the configured encoder."""

import dataclasses
from pathlib import Path
from typing import Any, Dict, List

from app.devices import find_device
from app.layers import layer_rows, state_rows
from app.machine import describe_machine, machine_line
from app.run_folder import relative, write_json
from app.sizes import sized_encoder
from app.tables import say, show_table
from cfg.app import AppConfig
from cfg.describe import DescribeJobConfig
from encoders import available_strategies, build_encoder
from encoders.training.trained import load_trained
from myfla.backends import describe

__all__ = ["run"]

FACTS = "describe.json"


def run(config: AppConfig, folder: Path) -> float:
    """Print the tables and write them as `FACTS`.

    Returns:
        the number of parameters of the encoder.
    """
    job = config.job_as(DescribeJobConfig)
    encoder = build_encoder(sized_encoder(config))
    facts: Dict[str, Any] = {
        "machine": describe_machine(),
        "backends": describe(find_device(config.trainer.accelerator)),
        "strategies": [row._asdict() for row in available_strategies()],
        "encoder": dataclasses.asdict(encoder.config),
        "needs_end": encoder.config.needs_end,
        "parameters": sum(p.numel() for p in encoder.parameters()),
        "input": [job.batch, job.length, *([] if encoder.config.vocab_size else [encoder.config.input_size])],
        "layers": [row._asdict() for row in layer_rows(encoder, job.batch, job.length, job.depth)],
        "state": state_rows(encoder),
    }
    if config.run is not None:
        pipeline = load_trained(config.run).pipeline
        facts["inputs"] = None if pipeline is None else pipeline.facts()
        say("" if pipeline is None else f"inputs: {pipeline.describe()}")
    write_json(facts, folder / FACTS)
    _show(facts)
    say(relative(folder / FACTS))
    return float(facts["parameters"])


def _show(facts: Dict[str, Any]) -> None:
    rows = [[row["name"], row["plugin"], row["distribution"], row["version"], row["state"], row["detail"]]
            for row in facts["strategies"]]
    say(machine_line(facts["machine"]) + "\n")
    show_table(["name", "plugin", "from", "version", "state", "why"], rows, "encoder strategies")
    title = "backends: which code computes the recurrence"
    show_table(["backend", "on this device"], list(facts["backends"].items()), title)
    encoder = facts["encoder"]
    title = (f"encoder={encoder['name']}, {encoder['direction']}: {facts['parameters']:,} parameters; "
             f"input {facts['input']}")
    rows = [[row["path"], row["kind"], f"{row['parameters']:,}", _list(row["weights"].items(), 3),
             " ".join(map(str, row["output"]))] for row in facts["layers"]]
    show_table(["module", "class", "parameters", "weights", "output"], rows, title, right=["parameters"])
    if facts["state"] is None:
        say(f"No state between calls: this encoder reads whole sequences ({facts['needs_end']}).")
        return
    rows = [[row["layer"], row["state"], row["shape"], row["dtype"], f"{row['bytes']:,}"] for row in facts["state"]]
    total = sum(row["bytes"] for row in facts["state"])
    show_table(["layer", "state", "shape", "dtype", "bytes"], rows, f"state of one sequence: {total:,} bytes",
               right=["bytes"])


def _list(weights: Any, most: int) -> str:
    shown: List[str] = [f"{name} {shape}" for name, shape in weights]
    more = len(shown) - most
    return ", ".join(shown[:most]) + (f", and {more} more" if more > 0 else "")
