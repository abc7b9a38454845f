"""A call leaves nothing behind: under any mode, or stopped in the middle, the next call gives the same bits."""

import contextlib
import warnings

import pytest
import torch
from torch import nn

from fuzz_subjects import SUBJECTS
from myfla.testing import cases

func = pytest.importorskip("torch.func")
fakes = pytest.importorskip("torch._subclasses.fake_tensor")
proxies = pytest.importorskip("torch.fx.experimental.proxy_tensor")
dispatch = pytest.importorskip("torch.utils._python_dispatch")

# The sizes of what these give depend on values, which a fake has none of.
COUNT = {
    "get_unpad_data", "unpad_input", "prepare_position_ids", "prepare_sequence_ids", "prepare_token_indices",
    "prepare_chunk_indices", "get_max_num_splits", "prepare_split_cu_seqlens", "Cache.select", "Cache.reorder",
}  # fmt: skip
RULES = [name for name in SUBJECTS if name.startswith(("gdn_", "rwkv7_", "dplr_"))]
SYMBOLIC = ("gdn_chunk", "rwkv7_chunk", "GatedDeltaNet", "token_shift")  # seconds each: the rest among the slow tests
LAYERS = ["GatedDeltaNet", "RWKV7Attention", "Attention", "ShortConvolution", "token_shift", "FusedRMSNormGated"]


def tensors(x):
    """All tensors in a result, in order."""
    if isinstance(x, torch.Tensor):
        return [x]
    parts = x.values() if isinstance(x, dict) else x if isinstance(x, (tuple, list)) else ()
    return [tensor for part in parts for tensor in tensors(part)]


def by_place(call, given):
    """The call as a function of its tensors alone, and these."""
    names = [name for name, x in given.items() if isinstance(x, torch.Tensor)]
    rest = {name: x for name, x in given.items() if name not in names}

    return Function(call, names, rest), [given[name] for name in names]


class Function(nn.Module):
    """A call of tensors by place; it owns the modules that the call uses, as ``torch.jit.trace`` asks."""

    def __init__(self, call, names, rest):
        super().__init__()
        self.call, self.names, self.rest = call, names, rest
        used = [call, *(cell.cell_contents for cell in getattr(call, "__closure__", None) or ())]
        self.parts = nn.ModuleList([part for part in used if isinstance(part, nn.Module)])

    def forward(self, *values):
        return tuple(tensors(self.call(**dict(zip(self.names, values)), **self.rest)))


def leaves(values):
    return [x.clone().requires_grad_() if x.is_floating_point() else x for x in values]


def fake(function, values):
    with fakes.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        function(*(mode.from_tensor(x) for x in values))


def made_by(kind):
    def run(function, values):
        proxies.make_fx(function, tracing_mode=kind, _allow_non_fake_inputs=True)(*values)  # weights are none

    return run


def inference(function, values):
    with torch.inference_mode():
        function(*values)


def autocast(function, values):
    with torch.autocast("cpu", torch.bfloat16):
        function(*values)


def gradient(function, values):
    places = tuple(i for i, x in enumerate(values) if x.is_floating_point())
    if places:
        func.grad(lambda *xs: sum(y.sum() for y in function(*xs) if y.is_floating_point()), places)(*values)


def script(function, values):
    torch.jit.trace(function, tuple(leaves(values)), check_trace=False)


class Stop(dispatch.TorchDispatchMode):
    """Counts operations; raises an error at one of them."""

    def __init__(self, at=None, error=None):
        super().__init__()
        self.count, self.at, self.error = 0, at, error

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += 1
        if self.count == self.at:
            raise self.error
        return operation(*args, **(kwargs or {}))


def stopped_by(kind):
    def run(function, values):
        def train():
            results = [y.sum() for y in function(*leaves(values)) if y.is_floating_point() and y.requires_grad]
            if results:
                torch.autograd.backward(results)

        with Stop() as counter:
            train()
        for share in (0.2, 0.5, 0.9):
            with pytest.raises(kind, match=r"^enough$"), Stop(max(1, int(share * counter.count)), kind("enough")):
                train()

    return run


MODES = {
    "fake": fake, "make_fx real": made_by("real"), "make_fx fake": made_by("fake"),
    "make_fx symbolic": made_by("symbolic"), "inference": inference, "autocast": autocast, "func.grad": gradient,
    "jit.trace": script, "an exception": stopped_by(ArithmeticError), "an interrupt": stopped_by(KeyboardInterrupt),
}  # fmt: skip
OF_FAKES = ("fake", "make_fx fake", "make_fx symbolic")
RECORDED = (*OF_FAKES, "make_fx real", "jit.trace", "func.grad")
NOT_HAD = {
    "mamba_chunk_scan_combined": OF_FAKES,  # seq_idx says by its values how many sequences there are
    # PyTorch's own packed GRU
    **dict.fromkeys(("encoder_gru", "encoder_inception_whole"), (*OF_FAKES, "make_fx real", "func.grad")),
    # Recorded graphs of these take whole sequences only, and say so; the subjects have lengths.
    **dict.fromkeys(("pipeline_forward", "pipeline_packed", "pipeline_own_scale", "encode_steps"), RECORDED),
    "encode": (*OF_FAKES, "make_fx real"),  # batches are made by the values of lengths
}


def refuses(name, mode):
    """Whether a mode cannot be had."""
    return mode in NOT_HAD.get(name, ()) or (name in COUNT and mode in (*OF_FAKES, "make_fx real"))


def check(name, modes):
    subject = SUBJECTS[name]
    call = subject.make(torch.float32)
    want = tensors(call(**subject.arguments()))
    for mode in modes:
        function, values = by_place(call, subject.arguments())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if refuses(name, mode):
                with contextlib.suppress(Exception):  # what counts is what comes after
                    MODES[mode](function, values)
            else:
                MODES[mode](function, values)
        got = tensors(call(**subject.arguments()))
        assert len(got) == len(want), mode
        for x, y in zip(got, want):
            assert type(x) is torch.Tensor and x.dtype == y.dtype and x.shape == y.shape, mode
            assert torch.equal(x.nan_to_num() if x.is_floating_point() else x,
                               y.nan_to_num() if y.is_floating_point() else y), mode


@cases(name=[*RULES, *LAYERS])
def test_after_every_mode_in_turn_a_rule_or_layer_gives_the_same_bits(name):
    check(name, [mode for mode in MODES if mode != "make_fx symbolic" or name in SYMBOLIC])


@pytest.mark.slow
@cases(name=list(SUBJECTS), mode=list(MODES))
def test_after_any_mode_every_public_function_gives_the_same_bits(name, mode):
    check(name, [mode])
