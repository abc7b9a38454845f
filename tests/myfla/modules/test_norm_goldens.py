"""The norms against what the official kernels gave on a GPU: values, residuals, every gradient."""

import torch

import goldens
from myfla.modules import fused_norm_gate, layernorm
from myfla.modules.l2norm import l2_norm
from myfla.testing import assert_close, cases

CASES = {
    name: case for name, case in goldens.load("modules").items()
    if case.params["module"] not in ("ShortConvolution", "token_shift")
}
ARGUMENTS = ("num_groups", "hidden_size", "elementwise_affine", "eps", "activation")


def _build(params):
    if params["module"] == "l2_norm":
        return None
    kind = getattr(layernorm, params["module"], None) or getattr(fused_norm_gate, params["module"])
    arguments = {name: params[name] for name in ARGUMENTS if name in params}
    if "bias" in params:
        arguments["bias"] = params["bias"]
    return kind(**arguments)


@cases(case=list(CASES))
def test_values_and_gradients_equal_the_official_ones(case):
    case = CASES[case]
    params, want = case.params, case.group("out")
    inputs = {name: t.clone().requires_grad_() for name, t in case.group("inputs").items() if name != "do"}
    module = _build(params)
    if module is None:
        out = l2_norm(inputs["x"])
    else:
        module.load_state_dict(case.group("params"))
        gate = [inputs["g"]] if "g" in inputs else []
        out = module(
            inputs["x"], *gate, residual=inputs.get("residual"), prenorm=params.get("prenorm", False),
            residual_in_fp32=params.get("residual_in_fp32", False))
    got = dict(zip(("y", "residual"), out if isinstance(out, tuple) else (out,)))
    (got["y"] * case.group("inputs")["do"]).sum().backward()
    got.update({f"d{name}": t.grad for name, t in inputs.items()})
    got.update({f"d{name}": t.grad for name, t in (module.named_parameters() if module is not None else ())})
    assert set(got) == set(want)
    bound = 1e-2 if inputs["x"].dtype == torch.bfloat16 else 1e-5
    for name in want:
        assert got[name].dtype == want[name].dtype
        assert_close(got[name], want[name], rms=bound, name=f"{case} {name}")


def test_every_official_case_is_compared():
    assert len(CASES) == 34
