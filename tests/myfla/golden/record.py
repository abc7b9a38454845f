"""Record the goldens again, from the official library on a CUDA GPU.

    python tests/myfla/golden/record.py --check            compare with what is stored, write nothing
    python tests/myfla/golden/record.py --out FOLDER       write new files
    python tests/myfla/golden/record.py --check --only plain ops_rwkv7      one case (Triton tunes itself for each)

Inputs and weights are those of the stored files, so that a change of the official library, of Triton or of the GPU
shows as a difference of outputs alone. Needs ``flash-linear-attention`` 0.6.0. Its gated backward is wrong, and
refuses to run, with Triton 3.4 to 3.7.0 on Hopper GPUs: gradients that cannot be recorded are left out and named in
the metadata.
"""

import argparse
import json
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
from safetensors import safe_open
from safetensors.torch import save_file

FOLDER = Path(__file__).resolve().parent
Tensors = Dict[str, torch.Tensor]


def group(tensors: Tensors, name: str) -> Tensors:
    """The tensors below ``name/`` on the GPU."""
    return {key[len(name) + 1 :]: x.cuda() for key, x in tensors.items() if key.startswith(name + "/")}


def leaves(tensors: Tensors, names: Any) -> Tensors:
    return {name: tensors[name].clone().requires_grad_() for name in names if name in tensors}


def offsets(params: Dict[str, Any]) -> Any:
    return None if params.get("cu") is None else torch.tensor(params["cu"], dtype=torch.int32, device="cuda")


def gated_delta_rule(params: Dict[str, Any], tensors: Tensors, refused: List[str]) -> Tensors:
    """``chunk`` with gradients and ``recurrent`` of one case."""
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule, fused_recurrent_gated_delta_rule

    given, out = group(tensors, "inputs"), {}
    flags = dict(
        scale=params["scale"], cu_seqlens=offsets(params), output_final_state=True, state_v_first=params["vf"],
        use_qk_l2norm_in_kernel=params["l2n"], use_gate_in_kernel=params["gate"],
        use_beta_sigmoid_in_kernel=params["sigm"], allow_neg_eigval=params["neg"],
    )  # fmt: skip
    x = leaves(given, ("q", "k", "v", "g", "beta", "h0", "A_log", "dt_bias"))
    turn = (lambda s: s.transpose(2, 3)) if params["vf"] else (lambda s: s)
    state = None if "h0" not in x else turn(x["h0"]).contiguous()
    named = dict(q=x["q"], k=x["k"], v=x["v"], g=x["g"], beta=x["beta"], initial_state=state)
    gates = {name: x[name] for name in ("A_log", "dt_bias") if name in x}
    o, final = chunk_gated_delta_rule(**named, **gates, **flags)
    out.update({"chunk/o": o, "chunk/ht": final})
    loss = (o.float() * given["do"].float()).sum() + (turn(final) * given["dht"]).sum()
    add_gradients(out, "chunk/d", loss, x, refused)
    with torch.no_grad():
        o, final = fused_recurrent_gated_delta_rule(**named, **gates, **flags)
    out.update({"recurrent/o": o, "recurrent/ht": final})
    return out


def rwkv7(params: Dict[str, Any], tensors: Tensors, refused: List[str]) -> Tensors:
    """``chunk`` with gradients and ``recurrent`` of one case."""
    from fla.ops.rwkv7 import chunk_rwkv7, fused_mul_recurrent_rwkv7

    given, out = group(tensors, "inputs"), {}
    x = leaves(given, ("r", "w", "k", "v", "kk", "a", "h0"))
    common = dict(scale=1.0, initial_state=x.get("h0"), output_final_state=True, cu_seqlens=offsets(params))
    o, final = chunk_rwkv7(x["r"], x["w"], x["k"], x["v"], -x["kk"], x["kk"] * x["a"], **common)
    out.update({"chunk/o": o, "chunk/ht": final})
    loss = (o.float() * given["do"].float()).sum() + (final * given["dht"]).sum()
    add_gradients(out, "chunk/d", loss, x, refused)
    with torch.no_grad():
        o, final = fused_mul_recurrent_rwkv7(*(x[n] for n in ("r", "w", "k", "v", "kk", "a")), **common)
    out.update({"recurrent/o": o, "recurrent/ht": final})
    return out


def add_gradients(out: Tensors, prefix: str, loss: torch.Tensor, inputs: Tensors, refused: List[str]) -> None:
    """Gradients of the loss, or the official reason why there are none."""
    try:
        found = torch.autograd.grad(loss, list(inputs.values()))
    except RuntimeError as error:
        refused.append(str(error).splitlines()[0])
        return
    out.update({prefix + name: grad for name, grad in zip(inputs, found)})


def module(params: Dict[str, Any], tensors: Tensors, refused: List[str]) -> Tensors:
    """Values and gradients of a norm, a convolution, l2_norm or token_shift."""
    import fla.modules
    from fla.modules.l2norm import l2_norm
    from fla.modules.token_shift import token_shift

    given = group(tensors, "inputs")
    x = leaves(given, [name for name in given if name != "do"])
    kind, weights = params["module"], group(tensors, "params")
    out: Tensors = {}
    if kind == "l2_norm":
        y, made = l2_norm(x["x"]), {}
    elif kind == "token_shift":
        y, cache = token_shift(x["x"], cache=given["cache"], output_cache=True)
        with torch.no_grad():
            out["out/y_varlen"] = token_shift(x["x"][:1], cu_seqlens=offsets(params))
            out["out/y_nocache"] = token_shift(x["x"])
        out["out/cache"], made = cache, {}
        x.pop("cache")
    else:
        names = ("num_groups", "hidden_size", "kernel_size", "elementwise_affine", "bias", "activation", "eps")
        layer = getattr(fla.modules, kind)(**{name: params[name] for name in names if name in params}).cuda()
        layer.load_state_dict(weights)
        made = dict(layer.named_parameters())
        if kind == "ShortConvolution":
            y, out["out/cache"] = layer(x["x"], residual=x.get("residual"), output_final_state=True)
            x.pop("residual", None)
            with torch.no_grad():
                convolution_calls(layer, x["x"].detach(), params, out)
        else:
            gate = [x["g"]] if "g" in x else []
            y = layer(x["x"], *gate, residual=x.get("residual"), prenorm=params.get("prenorm", False),
                      residual_in_fp32=params.get("residual_in_fp32", False))  # fmt: skip
            if isinstance(y, tuple):
                y, out["out/residual"] = y
    out["out/y"] = y
    add_gradients(out, "out/d", (y * given["do"]).sum(), {**x, **made}, refused)
    return out


def convolution_calls(layer: Any, x: torch.Tensor, params: Dict[str, Any], out: Tensors) -> None:
    """A head, four steps and the tail with a cache; a packed row."""
    out["out/y_head"], cache = layer(x[:, :33], output_final_state=True)
    out["out/cache_head"] = cache.clone()
    out["out/y_tail"], out["out/cache_tail"] = layer(x[:, 33:], cache=cache.clone(), output_final_state=True)
    steps = []
    for t in range(33, 37):
        y, cache = layer(x[:, t : t + 1], cache=cache, output_final_state=True)
        steps.append(y)
    out["out/y_steps"], out["out/cache_steps"] = torch.cat(steps, 1), cache
    packed = layer(x[:1], cu_seqlens=offsets(params), output_final_state=True)
    out["out/y_varlen"], out["out/cache_varlen"] = packed


def layer(kind: str) -> Callable:
    """Training, evaluation, masks, packing and one cache carried through prefill, decode and resume."""

    def record(params: Dict[str, Any], tensors: Tensors, refused: List[str]) -> Tensors:
        import fla.layers
        from fla.models.utils import Cache

        dtype = getattr(torch, params["dtype"].replace("torch.", ""))
        given = group(tensors, "inputs")
        made = getattr(fla.layers, kind)(**params["kwargs"]).cuda()
        made.load_state_dict(group(tensors, "params"))
        made = made.to(dtype)
        x, do, mask = given["x"].to(dtype), given["do"].to(dtype), given["mask_left"]
        first = given["v_first"].to(dtype) if "v_first" in given else None

        def run(part: torch.Tensor, at: slice = slice(None), **more: Any) -> torch.Tensor:
            if kind == "RWKV7Attention":
                more["v_first"] = None if first is None else first[: part.shape[0], at]
            return made(part, **more)[0]

        out: Tensors = {}
        leaf = x.clone().requires_grad_()
        y = run(leaf)
        out["out/train/y"] = y
        grads: Tensors = {}
        add_gradients(grads, "", (y * do).sum(), {"dx": leaf, **dict(made.named_parameters())}, refused)
        out.update({f"out/train/{'' if name == 'dx' else 'grad/'}{name}": g for name, g in grads.items()})
        made.eval()
        with torch.no_grad():
            out["out/eval_long/y"], out["out/eval_short/y"] = run(x), run(x[:, :40], slice(0, 40))
            out["out/mask_left/y"] = run(x, attention_mask=mask)
            out["out/varlen/y"] = run(x[:1], cu_seqlens=offsets(params))
            cache, at = Cache(), params["prefill"]
            cuts = {"prefill": [0, at], "decode": list(range(at, at + params["decode"] + 1))}
            cuts["resume"] = [at + params["decode"], x.shape[1]]
            for name, points in cuts.items():
                ys = [run(x[:, i:j], slice(i, j), past_key_values=cache, use_cache=True)
                      for i, j in zip(points[:-1], points[1:])]  # fmt: skip
                out[f"out/{name}/y"] = torch.cat(ys, 1)
                state = cache[params["kwargs"]["layer_idx"]]
                out[f"out/{name}/recurrent_state"] = state["recurrent_state"].clone()
                conv = state["conv_state"]
                if isinstance(conv, (tuple, list)):
                    out.update({f"out/{name}/conv_state_{i}": c.clone() for i, c in enumerate(conv) if c is not None})
                elif conv is not None:
                    out[f"out/{name}/conv_state"] = conv.clone()
        return {name: x.float() for name, x in out.items()}

    return record


def model(params: Dict[str, Any], tensors: Tensors, refused: List[str]) -> Tensors:
    """Logits, loss and gradients in training, logits and greedy tokens in evaluation."""
    from fla.models import GatedDeltaNetConfig, GatedDeltaNetForCausalLM, RWKV7Config, RWKV7ForCausalLM

    kinds = {"gated_deltanet": (GatedDeltaNetConfig, GatedDeltaNetForCausalLM),
             "rwkv7": (RWKV7Config, RWKV7ForCausalLM)}  # fmt: skip
    config, kind = kinds[params["config"]["model_type"]]
    lm = kind(config(**params["config"])).cuda()
    lm.load_state_dict(group(tensors, "params"))
    ids = group(tensors, "inputs")["ids"].long()
    result = lm.train()(input_ids=ids, labels=ids)
    out = {"out/logits": result.logits, "out/loss": result.loss.reshape(1)}
    add_gradients(out, "out/grad/", result.loss, dict(lm.named_parameters()), refused)
    lm.eval()
    with torch.no_grad():
        out["out/eval_logits"] = lm(input_ids=ids).logits
        out["out/generated"] = lm.generate(ids[:, :20], max_new_tokens=24, do_sample=False, eos_token_id=None)
    return out


RECORDERS = {
    "ops_gated_delta_rule": gated_delta_rule,
    "ops_rwkv7": rwkv7,
    "modules": module,
    "layer_gated_deltanet": layer("GatedDeltaNet"),
    "layer_rwkv7": layer("RWKV7Attention"),
    "models": model,
}


def record(name: str, only: Optional[str]) -> Tuple[Tensors, Dict[str, str]]:
    """All cases of one file (or those whose name begins with ``only``): its tensors and its metadata."""
    with safe_open(str(FOLDER / f"{name}.safetensors"), "pt") as file:
        metadata = dict(file.metadata())
        stored = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
    refused: List[str] = []
    fresh: Tensors = {}
    for case, params in json.loads(metadata["cases"]).items():
        if only is not None and not case.startswith(only):
            continue
        tensors = {key[len(case) + 1 :]: x for key, x in stored.items() if key.startswith(case + "/")}
        kept = {key: x for key, x in tensors.items() if key.split("/")[0] in ("inputs", "params")}
        made = RECORDERS[name](params, tensors, refused)
        differences = {}
        for key, x in made.items():
            old = tensors.get(key)
            if old is None:
                raise KeyError(f"{name} {case}: recorded {key}, which the stored file does not have")
            x = x.detach().cpu().to(old.dtype).contiguous()
            difference = (x.double() - old.double()).norm() / (old.double().norm() + 1e-12)
            differences[key] = difference.item()
            kept[key] = x
        worst = max(differences, key=differences.get)
        print(f"{name} {case}: largest relative difference {differences[worst]:.1e} ({worst})", flush=True)
        fresh.update({f"{case}/{key}": x for key, x in kept.items()})
    import fla
    import triton

    metadata.update(
        source=f"flash-linear-attention {fla.__version__}", torch=torch.__version__, triton=triton.__version__,
        device=torch.cuda.get_device_name(), refused=json.dumps(sorted(set(refused))),
    )  # fmt: skip
    return fresh, metadata


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument("--check", action="store_true", help="compare with the stored files")
    choice.add_argument("--out", type=Path, help="folder for new files")
    parser.add_argument("names", nargs="*", default=list(RECORDERS), help="which files")
    parser.add_argument("--only", help="only cases whose name begins so (with --check)")
    arguments = parser.parse_args()
    if arguments.only and arguments.out:
        parser.error("--only goes with --check: a file holds all of its cases")
    for name in arguments.names:
        tensors, metadata = record(name, arguments.only)
        refused = json.loads(metadata["refused"])
        print(f"{name}: {len(tensors)} tensors", *refused, sep="\n    ")
        if arguments.out:
            arguments.out.mkdir(parents=True, exist_ok=True)
            save_file(tensors, str(arguments.out / f"{name}.safetensors"), metadata=metadata)


if __name__ == "__main__":
    main()
