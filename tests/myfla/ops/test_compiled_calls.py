"""Compiled functions take calls of any number and kind: up to a limit of graphs compiled, beyond it aloud."""

import logging
import threading

import pytest
import torch

from myfla.backends import compiler
from myfla.backends.compiler import Compiled
from myfla.ops.gated_delta_rule import chunk_gated_delta_rule
from myfla.ops.rwkv7 import fused_recurrent_rwkv7
from myfla.testing import assert_close, cases

pytestmark = pytest.mark.skipif(compiler.compiler_problem("cpu") is not None, reason="no working torch.compile")


def config():
    return pytest.importorskip("torch._dynamo.config")


def limit_name():
    return "recompile_limit" if hasattr(config(), "recompile_limit") else "cache_size_limit"


@pytest.fixture(params=[1, 2, 8])
def limit(request, monkeypatch):
    """Of graphs; the user's own stays at one."""
    torch._dynamo.reset()
    monkeypatch.setattr(compiler, "GRAPHS", request.param)
    with config().patch(**{limit_name(): 1}):
        yield request.param


class Counting:
    """A compiler that counts graphs and keeps them as they are."""

    def __init__(self):
        self.made = 0

    def __call__(self, graph, inputs):
        self.made += 1
        return graph.forward


def unrolled(x, times=3, *, more=0.0):
    """A graph for each length, and for each number."""
    for _ in range(x.shape[0]):
        x = x * 2
    for _ in range(times):
        x = x + 1
    return x + more


def lengths(x, y, scale):
    """One graph for all lengths."""
    return (x.sum(1, keepdim=True) + y) * scale


def compiled_before(x):
    return x * 3


@cases(vary=["lengths", "numbers", "ranks", "dtypes and gradients"])
def test_no_number_of_calls_is_refused(vary, limit, caplog):
    count = Counting()
    call = Compiled(unrolled, backend=count)
    with caplog.at_level(logging.WARNING, "myfla"):
        for n in [*range(1, 2 * limit + 4)] * 2:
            x, times = torch.ones(2), 3
            if vary == "lengths":
                x = torch.ones(n)
            elif vary == "numbers":
                times = n
            elif vary == "ranks":
                x = torch.ones(n * [1])
            else:
                dtype = (torch.float32, torch.float64, torch.float16)[n % 3]
                x = torch.ones(2, dtype=dtype, requires_grad=n % 2 == 1)
            y = call(x, times)
            assert torch.equal(y, unrolled(x, times)) and y.dtype == x.dtype and y.requires_grad == x.requires_grad
    assert count.made <= limit and getattr(config(), limit_name()) == 1
    kinds = 6 if vary.startswith("dtypes") else 2 * limit + 3
    told = [r.getMessage() for r in caplog.records if r.name.startswith("myfla")]
    assert len(told) == (limit < min(kinds, 2 * limit + 3))  # once, however many calls are beyond the limit
    assert all("unrolled: more kinds of calls than the" in line for line in told)
    assert all("computed uncompiled" in line and "recompile_limit" in line for line in told)


def test_lengths_cost_few_graphs():
    torch._dynamo.reset()
    count = Counting()
    call = Compiled(lengths, backend=count)
    for grad in (False, True):
        for batch, tokens in ((2, 5), (4, 9), (3, 17), (7, 30), (2, 8), (6, 21), (7, 40), (9, 2)):
            x = torch.randn(batch, tokens, 3, requires_grad=grad)
            y = torch.randn(batch, 1, 3)
            assert torch.equal(call(x, y, 0.5), lengths(x, y, 0.5))
    assert count.made == 2


def test_other_errors_come_through_at_once():
    calls = []

    def fail(graph, inputs):
        calls.append(graph)
        raise RuntimeError("this limit reached nobody")

    call = Compiled(compiled_before, backend=fail)
    with pytest.raises(Exception, match="this limit reached nobody"):
        call(torch.ones(2))
    assert len(calls) == 1
    with pytest.raises(TypeError, match="positional argument"):
        call(torch.ones(2), 3, 4)


def test_defaults_and_keywords_are_the_functions_own():
    torch._dynamo.reset()
    call = Compiled(unrolled, backend="eager")
    x = torch.ones(2)
    assert torch.equal(call(x), unrolled(x)) and torch.equal(call(x, more=0.5), unrolled(x, more=0.5))


def test_threads_may_call_at_once():
    torch._dynamo.reset()
    call = Compiled(unrolled, backend="eager")
    wrong = []

    def work(first):
        wrong.extend(n for n in range(first, first + 14)
                     if not torch.equal(call(torch.ones(n), 2), unrolled(torch.ones(n), 2)))

    threads = [threading.Thread(target=work, args=(first,)) for first in (1, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def same_with_every_option(shapes, options):
    for batch, tokens, heads, value_heads, key, value in shapes:
        for grad, norm, state in options:
            torch.manual_seed(tokens)
            q, k = torch.randn(2, batch, tokens, heads, key, dtype=torch.float64)
            v, g = torch.randn(batch, tokens, value_heads, value), -torch.rand(batch, tokens, value_heads)
            leaves = [x.double().requires_grad_(grad) for x in (q, k, v, g, -g)]
            first = torch.randn(batch, value_heads, key, value, dtype=torch.float64) if state else None
            found = []
            for backend in ("compiled", "torch"):
                o, final = chunk_gated_delta_rule(
                    *leaves[:3], g=leaves[3], beta=leaves[4], initial_state=first, output_final_state=True,
                    use_qk_l2norm_in_kernel=norm, backend=backend,
                )  # fmt: skip
                grads = torch.autograd.grad(o.sum() + final.sum(), leaves) if grad else ()
                found.append((o, final, *grads))
            for mine, theirs in zip(*found):
                assert_close(mine, theirs, rms=1e-11)


def test_the_chunk_form_takes_more_calls_than_the_limit(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(compiler, "GRAPHS", 1)
    with config().patch(**{limit_name(): 1}):
        options = [(False, True, False), (True, False, True)]
        same_with_every_option([(2, 5, 2, 4, 4, 3), (3, 9, 2, 4, 4, 3)], options)


@pytest.mark.slow
def test_the_chunk_form_takes_a_hundred_calls():
    shapes = [(1, 5, 1, 1, 4, 4), (2, 9, 2, 2, 4, 3), (3, 17, 2, 4, 8, 8), (2, 33, 1, 2, 4, 5), (1, 1, 2, 2, 4, 4),
              (4, 20, 4, 4, 4, 4), (5, 64, 2, 2, 3, 3), (2, 70, 3, 3, 8, 4), (3, 40, 1, 3, 6, 2), (7, 13, 2, 2, 4, 4),
              (1, 40, 2, 2, 5, 7), (2, 2, 2, 2, 2, 2), (4, 4, 4, 4, 4, 4)]  # fmt: skip
    options = [(grad, norm, state) for grad in (False, True) for norm in (False, True) for state in (False, True)]
    same_with_every_option(shapes, options)


def test_a_step_takes_more_lengths_than_the_limit(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(compiler, "GRAPHS", 1)
    with config().patch(**{limit_name(): 1}):
        for rows in (1, 2, 5):
            r, w, k, v, kk, a = torch.randn(6, rows, 1, 2, 4, dtype=torch.float64)
            found = [fused_recurrent_rwkv7(r, -w.abs(), k, v, -kk, kk * a, output_final_state=True, backend=backend)
                     for backend in ("compiled", "torch")]  # fmt: skip
            for mine, theirs in zip(*found):
                assert_close(mine, theirs, rms=1e-11)
