"""Parallel wrappers, activation checkpointing and autocast: what wraps a block changes nothing that it computes."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from myfla.layers import GatedDeltaNet, RWKV7Attention
from myfla.models.rwkv7 import RWKV7FeedForward
from myfla.testing import assert_close, cases, rms_error
from small_models import KINDS, prompt, small_model

ROOT = Path(__file__).resolve().parents[2]
WRAPPERS = {"ddp": (1, 12), "fsdp2": (2, 6)}  # fully_shard is public since


def together(wrapper, kind):
    """Two processes; their outputs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    paths = [ROOT / "src", ROOT / "libs", ROOT / "tests" / "support"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "OMP_NUM_THREADS": "1"}
    script = str(ROOT / "tests" / "support" / "parallel_worker.py")
    running = [
        subprocess.Popen([sys.executable, script, str(rank), port, wrapper, kind], env=environment,
                         stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True)
        for rank in range(2)
    ]  # fmt: skip
    try:
        outputs = [process.communicate(timeout=120)[0] for process in running]
    finally:
        for process in running:
            process.kill()
    return outputs, [process.returncode for process in running]


needs_gloo = pytest.mark.skipif(
    not getattr(torch.distributed, "is_gloo_available", lambda: False)(), reason="no gloo in this PyTorch")


@needs_gloo
@cases(pair=[("ddp", "gated_deltanet"), ("fsdp2", "rwkv7")])
def test_two_processes_train_as_one(pair):
    check_pair(*pair)


@needs_gloo
@pytest.mark.slow
@cases(pair=[("ddp", "rwkv7"), ("fsdp2", "gated_deltanet")])
def test_two_processes_train_as_one_the_other_way(pair):
    check_pair(*pair)


def check_pair(wrapper, kind):
    if tuple(map(int, torch.__version__.split(".")[:2])) < WRAPPERS[wrapper]:
        pytest.skip("not in this PyTorch")
    outputs, codes = together(wrapper, kind)
    assert codes == [0, 0], "\n".join(outputs)
    assert all("largest difference" in output for output in outputs)


LAYERS = {
    "gated_deltanet": lambda **of: GatedDeltaNet(hidden_size=8, head_dim=4, num_heads=2, **of),
    "rwkv7": lambda **of: RWKV7Attention(hidden_size=8, head_dim=4, num_hidden_layers=2, **of),
    "rwkv7 feed-forward": lambda **of: RWKV7FeedForward(8, **of),
}


def gradients(layer, run, x):
    layer.zero_grad()
    x = x.detach().requires_grad_()
    y = run(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape)).sum().backward()
    return [y, x.grad, *(p.grad.clone() for p in layer.parameters() if p.grad is not None)]


@cases(name=list(LAYERS), use_reentrant=[False, True], masked=[False, True])
def test_checkpointed_layers_have_the_same_gradients(name, use_reentrant, masked):
    torch.manual_seed(0)
    layer = LAYERS[name](dtype=torch.float64)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    mask = torch.ones(2, 70)
    mask[0, :9], mask[1, 30:] = 0, 0
    options = {"attention_mask": mask} if masked else {}

    def run(x):
        return layer(x, **options)[0]

    x = torch.randn(2, 70, 8, dtype=torch.float64)
    want = gradients(layer, run, x)
    got = gradients(layer, lambda x: checkpoint(run, x, use_reentrant=use_reentrant), x)
    assert len(want) == len(got)
    for mine, theirs in zip(got, want):
        assert torch.equal(mine, theirs)


@cases(kind=KINDS)
def test_checkpointed_models_have_the_same_gradients(kind):
    model, ids = small_model(kind, dtype=torch.float64).train(), prompt(2, 20)
    found = []
    for on in (False, True):
        (model.gradient_checkpointing_enable if on else model.gradient_checkpointing_disable)()
        model.zero_grad()
        model(ids, labels=ids, use_cache=False).loss.backward()
        found.append([p.grad.clone() for p in model.parameters()])
    for mine, theirs in zip(*found):
        assert torch.equal(mine, theirs)
    with pytest.raises(ValueError, match="use_cache must be False with gradient checkpointing"):
        model(ids, use_cache=True)


@cases(name=list(LAYERS), dtype=[torch.bfloat16, torch.float16], masked=[False, True])
def test_autocast_on_the_cpu_is_half_precision_of_the_same_layer(name, dtype, masked):
    """Parameters and gradients stay float32. A gradient passes some ten roundings of eps / 2 each."""
    torch.manual_seed(0)
    layer = LAYERS[name]()
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    mask = torch.ones(2, 70)
    mask[0, :9] = 0
    options = {"attention_mask": mask} if masked else {}
    x = torch.randn(2, 70, 8)
    want = gradients(layer, lambda x: layer(x, **options)[0], x)

    def run(x):
        with torch.autocast("cpu", dtype=dtype):
            y = layer(x, **options)[0]
        assert y.dtype == dtype
        return y.float()

    try:
        got = gradients(layer, run, x)
    except RuntimeError as problem:  # float16 under autocast on the CPU came late
        pytest.skip(str(problem))
    assert all(g.dtype == torch.float32 for g in got[1:])
    eps = torch.finfo(dtype).eps
    assert_close(got[0], want[0], rms=2 * eps, largest=20 * eps)
    mine, theirs = (torch.cat([g.flatten() for g in gradients[1:]]) for gradients in (got, want))
    assert rms_error(mine, theirs) < 5 * eps
