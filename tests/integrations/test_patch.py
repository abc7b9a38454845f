"""`Patch` chooses by device and leaves nothing behind."""

import types

import torch

from myfla.integrations.patch import Patch
from myfla.testing import cases


def library():
    """A module with a function and a class, as somebody else's package has them."""
    module = types.ModuleType("library")

    def double(x, times=2):
        """Docs."""
        return ("theirs", times)

    class Layer:
        def forward(self, x):
            return "theirs"

    module.double, module.Layer = double, Layer
    return module


def ours(*args, **kwargs):
    return ("ours", kwargs.get("times"))


def patched(module, *devices):
    patch = Patch(devices)
    patch.replace(module, "double", ours)
    patch.replace(module.Layer, "forward", ours)
    return patch


CPU, META = torch.zeros(1), torch.zeros(1, device="meta")


def test_the_device_of_the_first_tensor_decides_at_every_call():
    module = library()
    with patched(module, "cpu"):
        assert module.double(CPU, times=3) == ("ours", 3)
        assert module.double(META, times=3) == ("theirs", 3)
        assert module.double(times=4, x=CPU) == ("ours", 4)
        assert module.Layer().forward(CPU) == ("ours", None)
        assert module.Layer().forward(META) == "theirs"
    with patched(module, "meta", "cpu"):
        assert module.double(META)[0] == module.double(CPU)[0] == "ours"
    with patched(module, "meta"):
        assert module.double(CPU)[0] == "theirs"


@cases(fails=[False, True])
def test_everything_is_as_it_was_after_the_block(fails):
    module = library()
    before = (module.double, module.Layer.forward, dict(vars(module)), dict(vars(module.Layer)))
    try:
        with patched(module, "cpu") as patch:
            assert patch.changed == ["library.double", f"{__name__}.library.<locals>.Layer.forward"]
            assert module.double is not before[0]
            if fails:
                raise KeyError("inside")
    except KeyError:
        assert fails
    assert (module.double, module.Layer.forward, dict(vars(module)), dict(vars(module.Layer))) == before
    assert patch.changed == [] and not patch.active
    patch.undo()
    assert module.double is before[0]


@cases(order=[(0, 1, 2), (2, 1, 0), (1, 0, 2), (1, 2, 0), (0, 2, 1)])
def test_patches_may_be_undone_in_any_order(order):
    module = library()
    before = module.double, module.Layer.forward
    patches = [patched(module, device) for device in ("cpu", "meta", "cpu")]
    for number in order:
        patches[number].undo()
        alive = {device for patch in patches if patch.active for device in patch.devices}
        for x in (CPU, META):
            assert module.double(x)[0] == ("ours" if x.device.type in alive else "theirs")
    assert (module.double, module.Layer.forward) == before


def test_what_was_copied_from_a_patched_place_does_what_was_there_before():
    module = library()
    with patched(module, "cpu"):
        function, method = module.double, module.Layer().forward
        assert function(CPU)[0] == method(CPU)[0] == "ours"
    assert function(CPU, times=5) == ("theirs", 5)
    assert method(CPU) == "theirs"


def test_what_somebody_else_put_on_top_stays():
    module = library()
    patch = patched(module, "cpu")
    under = module.double

    def on_top(x):
        return ("on top", under(x)[0])

    module.double = on_top
    assert module.double(CPU) == ("on top", "ours")
    patch.undo()
    assert module.double is on_top
    assert module.double(CPU) == ("on top", "theirs")


def test_a_replaced_function_keeps_its_name_and_shows_what_it_covers():
    module = library()
    before = module.double
    with patched(module, "cpu") as patch:
        assert (module.double.__name__, module.double.__doc__) == ("double", "Docs.")
        assert module.double.__wrapped__ is before
        assert "devices=('cpu',)" in repr(patch) and "library.double" in repr(patch)


def test_a_torch_module_can_stand_where_a_function_does():
    module = library()
    module.double = torch.nn.Identity()
    with patched(module, "meta"):
        assert module.double(CPU) is CPU
        assert module.double(META)[0] == "ours"
    assert isinstance(module.double, torch.nn.Identity)
