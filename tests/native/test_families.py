"""Every member of the family where the compiled kernels are installed: those they know, and those they do not."""

import torch

import family
import family_layers
from myfla.models.utils import Cache
from myfla.testing import assert_close, cases, raises
from myfla.utils.errors import BackendError

UNKNOWN = ["gla", "simple_gla"]


@cases(name=list(family.MEMBERS), form=["chunk", "recurrent"], value_heads=[2, 4], tokens=[1, 37])
def test_auto_equals_the_token_loop_with_every_gradient(native, name, form, value_heads, tokens):
    if name in UNKNOWN:
        value_heads = 2
    given = family.inputs(name, tokens=tokens, value_heads=value_heads, dtype=torch.float32)
    state = family.state_for(given)
    got, want = family.gradients(name, form, given, state), family.gradients(name, "truth", given, state)
    for key in want:
        assert_close(got[key], want[key], rms=2e-6, largest=1e-5, name=f"{name} {key}")


@cases(name=UNKNOWN, form=["chunk", "recurrent"])
def test_a_family_without_compiled_kernels_is_refused_by_its_name(native, name, form):
    with raises(BackendError, name, "native", f"it has no form of {name}", "backend='auto'"):
        family.run(name, form, family.inputs(name, dtype=torch.float32), backend="native")


@cases(name=family_layers.ALL)
def test_layers_give_the_numbers_of_the_plain_form_in_training_and_streaming(native, name):
    found = []
    for backend in ("auto", "torch"):
        layer = family_layers.build(name, torch.float32, backend=backend)
        torch.manual_seed(0)
        x = torch.randn(2, 23, family_layers.D)
        whole = layer(x)[0]
        whole.sin().sum().backward()
        cache, parts = Cache(), []
        with torch.no_grad():
            for i, j in ((0, 20), (20, 21), (21, 23)):
                parts.append(layer(x[:, i:j], past_key_values=cache, use_cache=True)[0])
        assert_close(torch.cat(parts, 1), whole, rms=2e-6)
        found.append((whole, *(p.grad for p in layer.parameters() if p.grad is not None)))
    for got, want in zip(*found):
        assert_close(got, want, rms=1e-5, largest=1e-3)
