"""A mock host program, configuration set E, version 004: two RWKV-7 and two GatedDeltaNet encoders from one list.

    PYTHONPATH=src python3.8 src/cfg/cfg_hf/cfg_setE_mock_v004.py

Runs from a bare checkout. One line per step; the first failure ends it with exit code 1.
"""

import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

ROOT = Path(__file__).resolve().parents[3]
for folder in ("src", "libs"):  # PYTHONPATH=src does not cover libs
    if str(ROOT / folder) not in sys.path:
        sys.path.append(str(ROOT / folder))

import torch  # noqa: E402

from encoders import Encoder, available_strategies, build_encoder, encoder_config, get_strategy  # noqa: E402
from myfla.layers import GatedDeltaNet  # noqa: E402
from myfla.layers.rwkv7 import RWKV7Attention  # noqa: E402
from myfla.models.utils import Cache  # noqa: E402
from myfla.testing import assert_close  # noqa: E402

CHANNELS, STEPS = 12, 40
LENGTHS = [40, 27, 1, 9, 0]
PIECES = [1, 0, 16, 22, 1]
BOUND = 1e-9  # everything runs in float64; what may differ is the order of sums
LAYERS = {"rwkv7": RWKV7Attention, "gated_deltanet": GatedDeltaNet}

SET_E: List[Dict[str, Any]] = [
    {"name": "rwkv7", "hidden_size": 32, "num_layers": 2, "num_heads": 2, "pooling": "mean"},
    {"name": "gated_deltanet", "hidden_size": 32, "num_layers": 2, "num_heads": 2, "head_dim": 8, "pooling": "last"},
    {"name": "rwkv7", "hidden_size": 24, "num_layers": 3, "pooling": "attention", "mlp_ratio": 3.0},
    {"name": "gated_deltanet", "hidden_size": 24, "num_layers": 3, "num_heads": 2, "num_v_heads": 4, "head_dim": 8,
     "expand_v": 1.5, "allow_neg_eigval": True, "pooling": "max"},
]  # fmt: skip


def host_config() -> Dict[str, Any]:
    """What the host program would read from its own files."""
    return {"set": "E", "version": "004", "encoders": [dict(entry, input_size=CHANNELS) for entry in SET_E]}


def make(entry: Dict[str, Any], seed: int) -> Encoder:
    """An encoder from the factory with noise added to every parameter: fresh RWKV-7 layers add nothing to their
    input."""
    torch.manual_seed(seed)
    encoder = build_encoder(entry, dtype=torch.float64).eval()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return encoder


def padded_batch() -> Tuple[torch.Tensor, torch.Tensor]:
    """Sequences of several lengths, NaN in the pads, and their lengths."""
    torch.manual_seed(4)
    x, lengths = torch.randn(len(LENGTHS), STEPS, CHANNELS, dtype=torch.float64), torch.tensor(LENGTHS)
    real = (torch.arange(STEPS) < lengths[:, None])[..., None]
    return torch.where(real, x, torch.full_like(x, float("nan"))), lengths


def require(holds: bool, what: str) -> None:
    """Raise unless ``holds``."""
    if not holds:
        raise AssertionError(what)


def check_factory(config: Dict[str, Any]) -> str:
    """Every name of the configuration is a strategy that is ready."""
    ready = [row.name for row in available_strategies() if row.state == "ready"]
    for entry in config["encoders"]:
        require(entry["name"] in ready, f"{entry['name']} is not among the ready strategies {ready}")
        of_strategy = get_strategy(entry["name"]).config_class
        require(of_strategy is type(encoder_config(entry)), "the config is of another class")
    return f"strategies ready: {', '.join(ready)}"


def check_padded(encoder: Encoder) -> str:
    """A padded batch gives what each sequence gives by itself."""
    x, lengths = padded_batch()
    out = encoder(x, lengths=lengths)
    for row, n in enumerate(LENGTHS):
        alone = encoder(x[row : row + 1, :n])
        assert_close(out.hidden[row, :n], alone.hidden[0], rms=BOUND, name=f"hidden states of row {row}")
        assert_close(out.embedding[row], alone.embedding[0], rms=BOUND, name=f"embedding of row {row}")
        require(not out.hidden[row, n:].any(), f"row {row} is not zero at its pads")
    return f"hidden {tuple(out.hidden.shape)}, embedding {tuple(out.embedding.shape)}, pads of NaN unseen"


def check_streamed(encoder: Encoder) -> str:
    """The padded batch in pieces, through one cache for all layers, gives what it gives in one call."""
    x, lengths = padded_batch()
    whole, cache, parts, start = encoder(x, lengths=lengths, use_cache=True), None, [], 0
    with torch.no_grad():
        for size in PIECES:
            new = (lengths - start).clamp(0, size)
            out = encoder(x[:, start : start + size], lengths=new, cache=cache, use_cache=True)
            cache, start = out.cache, start + size
            parts.append(out.hidden)
    require(start == STEPS, "the pieces do not cover the batch")
    assert_close(torch.cat(parts, 1), whole.hidden, rms=BOUND, name="hidden states in pieces")
    for i in range(len(encoder.blocks)):
        got, want = cache[i]["recurrent_state"], whole.cache[i]["recurrent_state"]
        assert_close(got, want, rms=BOUND, name=f"state of layer {i}")
    require(cache.lengths.tolist() == LENGTHS, f"the cache counted {cache.lengths.tolist()}")
    return f"{len(PIECES)} pieces through {len(cache)} layers equal the whole"


def check_layers(encoder: Encoder) -> str:
    """The encoder's values are those of myfla's layers called one after the other."""
    x = padded_batch()[0][:1]
    kind = LAYERS[encoder.config.name]
    hidden, cache, v_first = encoder.input(x), Cache(), None
    for block in encoder.blocks:
        ours = type(block.mixer) is kind and kind.__module__.startswith("myfla.layers")
        require(ours, f"{type(block.mixer)} is foreign")
        if kind is GatedDeltaNet:
            hidden = hidden + block.mixer(block.mixer_norm(hidden), past_key_values=cache, use_cache=True)[0]
            hidden = hidden + block.mlp(block.mlp_norm(hidden))
        else:
            hidden = block.entry_norm(hidden)
            mixed, _, _, v_first = block.mixer(
                block.mixer_norm(hidden), past_key_values=cache, use_cache=True, v_first=v_first
            )
            hidden = hidden + mixed
            hidden = hidden + block.mlp(block.mlp_norm(hidden), state=cache)[0]
    want = encoder(x, use_cache=True)
    assert_close(want.hidden, encoder.norm(hidden), rms=BOUND, name="hidden states of the layers")
    assert_close(want.cache[len(cache) - 1]["recurrent_state"], cache[len(cache) - 1]["recurrent_state"], rms=BOUND)
    require("fla" not in sys.modules, "the official library was imported")
    return f"equal to {len(encoder.blocks)} {kind.__name__} of {kind.__module__} called directly"


def check_switch(config: Dict[str, Any]) -> str:
    """One word in the configuration makes the third entry a GatedDeltaNet encoder; the rest of it stays."""
    before = config["encoders"][2]
    after = dict(before, name="gated_deltanet")
    old, new = make(before, 2), make(after, 2)
    require(isinstance(old.blocks[0].mixer, RWKV7Attention), "the entry was no RWKV-7 encoder")
    require(isinstance(new.blocks[0].mixer, GatedDeltaNet), "the entry is no GatedDeltaNet encoder")
    x, lengths = padded_batch()
    shapes = [tuple(e(x, lengths=lengths).embedding.shape) for e in (old, new)]
    require(shapes[0] == shapes[1], f"the embedding changed its shape: {shapes}")
    for check in (check_padded, check_streamed, check_layers):
        check(new)
    return f"rwkv7 -> gated_deltanet, embedding still {shapes[1]}, all checks hold"


def main() -> int:
    """Run every step and return the exit code."""
    config = host_config()
    steps: List[Tuple[str, Callable[[], str]]] = [("factory", lambda: check_factory(config))]
    for i, entry in enumerate(config["encoders"]):
        label, encoder = f"encoder {i} {entry['name']}", make(entry, i)
        steps.append((f"{label}: padded", lambda e=encoder: check_padded(e)))
        steps.append((f"{label}: streamed", lambda e=encoder: check_streamed(e)))
        steps.append((f"{label}: layers", lambda e=encoder: check_layers(e)))
    steps.append(("switch encoder 2", lambda: check_switch(config)))
    versions = f"Python {sys.version.split()[0]}, torch {torch.__version__}"
    print(f"set {config['set']}, version {config['version']}: {versions}")
    for label, step in steps:
        try:
            print(f"ok      {label}: {step()}")
        except Exception as problem:
            print(f"FAILED  {label}: {type(problem).__name__}: {problem}")
            return 1
    print(f"{len(steps)} steps passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
