"""The convolution's functions, module surface and error messages."""

import warnings

import torch

from conv_loop import loop, loop_packed
from myfla.modules.convolution import (
    ShortConvolution,
    causal_conv1d,
    causal_conv1d_update,
    causal_conv1d_update_states,
)
from myfla.testing import assert_close, cases, raises


def test_any_memory_layout_gives_the_same():
    conv = ShortConvolution(4, 3, bias=True)
    wide = torch.randn(2, 9, 12)
    for view in (wide[..., 4:8], wide[:, ::2, :4], wide.transpose(1, 2)[:, 2:6, :4].transpose(1, 2)):
        own = view.detach().requires_grad_()
        plain = view.contiguous().requires_grad_()
        assert torch.equal(conv(own)[0], conv(plain)[0])
        conv(own)[0].sum().backward()
        conv(plain)[0].sum().backward()
        assert_close(own.grad, plain.grad, rms=1e-6)


@cases(shape=[(0, 5), (2, 0), (0, 0), (0, 1)])
def test_empty_batches_and_sequences_pass(shape):
    conv = ShortConvolution(3, 4, bias=True)
    x = torch.randn(*shape, 3, requires_grad=True)
    y, cache = conv(x, output_final_state=True)
    y.sum().backward()
    assert y.shape == x.shape == x.grad.shape and cache.shape == (shape[0], 3, 4)
    assert not conv.weight.grad.any() and not conv.bias.grad.any()
    with torch.no_grad():
        y, cache = conv(x, output_final_state=True)
    assert y.shape == x.shape and not cache.any()


def test_channels_may_come_split_in_heads():
    x, w, r = torch.randn(2, 5, 3, 4), torch.randn(12, 4), torch.randn(2, 5, 3, 4)
    y, final = causal_conv1d(x, w, residual=r, output_final_state=True, activation="silu")
    want, want_final = causal_conv1d(x.flatten(2), w, None, r.flatten(2), None, True, "silu")
    assert y.shape == x.shape and torch.equal(y.flatten(2), want) and torch.equal(final, want_final)


@cases(shape=[(5, 3), (1, 5, 3), (5, 1, 3)])
def test_update_takes_every_official_shape(shape):
    x, cache, w, b, r = torch.randn(5, 3), torch.randn(5, 3, 4), torch.randn(3, 4), torch.randn(3), torch.randn(5, 3)
    before = cache.clone()
    y, new = causal_conv1d_update(x.view(shape), cache, r.view(shape), w, b, "silu")
    want, want_new = loop_packed(x, list(range(6)), w, b, r, cache, "silu")
    assert y.shape == shape and torch.equal(cache, before)
    assert_close(y.view(5, 3), want, rms=1e-6)
    assert torch.equal(new, want_new)


@cases(state=[False, True])
def test_update_states_takes_unpacked_and_packed_input(state):
    x, cut = torch.randn(7, 3), [0, 0, 1, 5, 7]
    old = torch.randn(4, 3, 3) if state else None
    want = loop_packed(x, cut, torch.zeros(3, 3), state=old)[1]
    assert torch.equal(causal_conv1d_update_states(x, 3, old, torch.tensor(cut)), want)
    assert torch.equal(causal_conv1d_update_states(x.unsqueeze(0), 3, old, torch.tensor(cut)), want)
    assert torch.equal(causal_conv1d_update_states(x.unsqueeze(0), 3), loop(x, torch.zeros(3, 3))[1].unsqueeze(0))


# --- the module itself


@cases(bias=[False, True], dtype=[torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_keys_shapes_and_formats_are_those_of_conv1d(bias, dtype):
    conv = ShortConvolution(6, 4, bias=bias, dtype=dtype)
    assert isinstance(conv, torch.nn.Conv1d)
    want = {"weight": (6, 1, 4), **({"bias": (6,)} if bias else {})}
    assert {name: tuple(p.shape) for name, p in conv.state_dict().items()} == want
    assert all(p.dtype == dtype for p in conv.parameters())
    assert conv.state_size == 24 and conv.kernel_size == (4,)


def test_meta_device_and_reset_parameters():
    conv = ShortConvolution(6, 4, bias=True, device="meta")
    assert all(p.is_meta for p in conv.parameters())
    y, cache = conv(torch.zeros(2, 5, 6, device="meta"), output_final_state=True)
    assert y.is_meta and y.shape == (2, 5, 6) and cache.shape == (2, 6, 4)
    conv = conv.to_empty(device="cpu")
    conv.reset_parameters()
    assert all(torch.isfinite(p).all() for p in conv.parameters()) and conv.weight.abs().max() <= 0.5


def test_repr_names_the_settings():
    assert repr(ShortConvolution(6, 4)) == "ShortConvolution(6, kernel_size=4, activation=silu, bias=False)"
    assert repr(ShortConvolution(6, 2, bias=True, activation=None)) == (
        "ShortConvolution(6, kernel_size=2, activation=None)")


def test_old_official_keyword_is_accepted_with_a_warning():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        ShortConvolution(4, 2, use_fast_conv1d=True)
    assert len(seen) == 1 and "use_fast_conv1d" in str(seen[0].message)


def test_official_backends_are_accepted():
    x, w = torch.randn(1, 4, 2), torch.randn(2, 3)
    assert ShortConvolution(2, 3, backend="cuda").backend == "cuda"
    assert torch.equal(causal_conv1d(x, w, backend="mix")[0], causal_conv1d(x, w)[0])


# --- errors


def test_constructor_errors_name_the_field():
    with raises(ValueError, "ShortConvolution: hidden_size must be at least 1", "got 0"):
        ShortConvolution(0, 4)
    with raises(ValueError, "ShortConvolution: kernel_size must be at least 1", "got -2"):
        ShortConvolution(4, -2)
    with raises(ValueError, "ShortConvolution: activation must be one of ['silu', 'swish', None]", "'relu'"):
        ShortConvolution(4, 2, activation="relu")
    with raises(ValueError, "ShortConvolution: backend must be one of ['triton', 'cuda']", "'mps'"):
        ShortConvolution(4, 2, backend="mps")
    with raises(TypeError, "ShortConvolution: unknown keyword 'kernal_size'", "did you mean 'kernel_size'?"):
        ShortConvolution(4, 2, kernal_size=2)


def test_call_errors_name_the_field():
    conv, x = ShortConvolution(4, 3), torch.randn(2, 5, 4)
    one = x[:1]
    with raises(ValueError, "ShortConvolution: x must have shape [B, T, D]", "(5, 4)"):
        conv(x[0])
    with raises(ValueError, "ShortConvolution: x must have 4 channels", "(2, 5, 3)"):
        conv(x[..., :3])
    with raises(ValueError, "ShortConvolution: x must be a floating tensor", "torch.int64"):
        conv(x.long())
    with raises(ValueError, "ShortConvolution: residual must have the shape of x, (2, 5, 4)", "(1, 5, 4)"):
        conv(x, residual=one)
    with raises(ValueError, "ShortConvolution: mask must have shape [B, T] = (2, 5)", "(2, 4)"):
        conv(x, mask=torch.ones(2, 4))
    with raises(ValueError, "ShortConvolution: mask and cu_seqlens cannot both be given"):
        conv(one, mask=torch.ones(1, 5), cu_seqlens=torch.tensor([0, 5]))
    with raises(ValueError, "ShortConvolution: cache must have shape [N, D, W] = (2, 4, 3)", "(2, 4, 2)"):
        conv(x, cache=torch.zeros(2, 4, 2))
    with raises(ValueError, "ShortConvolution: cache must have shape [N, D, W] = (2, 4, 3)", "one for each sequence"):
        conv(one, cache=torch.zeros(1, 4, 3), cu_seqlens=torch.tensor([0, 1, 5]))
    with torch.no_grad(), raises(ValueError, "ShortConvolution: cache must have shape [N, D, W] = (2, 4, 3)"):
        conv(x[:, :1], cache=torch.zeros(3, 4, 3))
    with raises(TypeError, "ShortConvolution: unknown keyword 'cu_seqlen'", "did you mean 'cu_seqlens'?"):
        conv(one, cu_seqlen=torch.tensor([0, 5]))
    with raises(ValueError, "ShortConvolution: cp_context must be None", "context parallelism"):
        conv(x, cp_context="ring")


@cases(grad=[False, True])
def test_wrong_offsets_are_refused(grad):
    conv, x = ShortConvolution(4, 3), torch.randn(1, 5, 4)
    with torch.set_grad_enabled(grad):
        for offsets, part in (
            ([1, 5], "must start at 0"),
            ([0, 3, 2, 5], "must not decrease"),
            ([0, 4], "must end at the number of tokens, 5"),
            ([0.0, 5.0], "must be int32 or int64"),
            ([[0, 5]], "must have shape [N+1]"),
        ):
            with raises(ValueError, "ShortConvolution: cu_seqlens", part):
                conv(x, cu_seqlens=torch.tensor(offsets))
        with raises(ValueError, "ShortConvolution: cu_seqlens must be a tensor", "'list'"):
            conv(x, cu_seqlens=[0, 1, 2, 3, 4, 5])
        with raises(ValueError, "ShortConvolution: cu_seqlens needs data packed as [1, total, ...]", "batch size 2"):
            conv(x.expand(2, 5, 4), cu_seqlens=torch.tensor([0, 5]))


def test_function_errors_name_the_function():
    x, w = torch.randn(2, 5, 4), torch.randn(4, 3)
    with raises(ValueError, "causal_conv1d: weight must have shape [D, W]", "None"):
        causal_conv1d(x)
    with raises(ValueError, "causal_conv1d: weight must have shape [D, W]", "(4, 1, 3)"):
        causal_conv1d(x, w.unsqueeze(1))
    with raises(ValueError, "causal_conv1d: bias must have shape (4,)", "(3,)"):
        causal_conv1d(x, w, torch.zeros(3))
    with raises(ValueError, "causal_conv1d: initial_state must have shape [N, D, W] = (2, 4, 3)", "(1, 4, 3)"):
        causal_conv1d(x, w, initial_state=torch.zeros(1, 4, 3))
    with raises(ValueError, "causal_conv1d: activation must be one of", "'gelu'"):
        causal_conv1d(x, w, activation="gelu")
    with raises(ValueError, "causal_conv1d: backend must be one of ['triton', 'cuda', 'mix']", "'cpu'"):
        causal_conv1d(x, w, backend="cpu")
    with raises(ValueError, "causal_conv1d: cp_context must be None"):
        causal_conv1d(x, w, cp_context=object())
    with raises(TypeError, "causal_conv1d: unknown keyword 'activaton'", "did you mean 'activation'?"):
        causal_conv1d(x, w, activaton="silu")
    with raises(ValueError, "causal_conv1d_update: x must be one token per sequence", "(2, 5, 4)"):
        causal_conv1d_update(x, torch.zeros(2, 4, 3), weight=w)
    with raises(ValueError, "causal_conv1d_update: cache must have shape [N, D, W] = (2, 4, 3)", "(1, 4, 3)"):
        causal_conv1d_update(x[:, 0], torch.zeros(1, 4, 3), weight=w)
    with raises(ValueError, "causal_conv1d_update: residual must have the shape of x, (2, 4)", "(4,)"):
        causal_conv1d_update(x[:, 0], torch.zeros(2, 4, 3), torch.zeros(4), w)
    with raises(ValueError, "causal_conv1d_update_states: x must have shape [B, T, D]", "(5, 4)"):
        causal_conv1d_update_states(x[0], 3)
    with raises(ValueError, "causal_conv1d_update_states: state_len must be a whole number from 1", "got 0"):
        causal_conv1d_update_states(x, 0)
    with raises(ValueError, "causal_conv1d_update_states: initial_state must have shape [N, D, W] = (2, 4, 3)"):
        causal_conv1d_update_states(x, 3, torch.zeros(2, 4, 2))
