"""Do the tests detect wrong code? One line of a copy of the tree is changed at a time; the tests of the row must fail.

    python tools/mutants.py            all (make test-mutants)
    python tools/mutants.py gate       only those whose name contains a word
    python tools/mutants.py --check    only check that every line to change occurs once

A row whose text is no longer in its file is an error: then the row has to be written anew.
"""
# ruff: noqa: E501  (a row is read best on one line)

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import List, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
TREE = ("libs", "src", "tests", "conf", "pyproject.toml")


class Mutant(NamedTuple):
    """One change, and the tests that must detect it."""

    name: str
    file: str
    old: str
    new: str
    tests: str


OPS = "libs/myfla/ops/"
ENGINE, FAMILIES = OPS + "_delta/", OPS + "_delta/families/"
GDN, DPLR, RWKV = OPS + "gated_delta_rule/", OPS + "generalized_delta_rule/dplr/", OPS + "rwkv7/"
LAYERS, MODULES, MODELS = "libs/myfla/layers/", "libs/myfla/modules/", "libs/myfla/models/"
DECODE = "tests/myfla/ops/test_decoding_step.py"
PLANNED = "tests/myfla/ops/test_plans.py"
RULE, LAYER = "tests/myfla/test_gated_delta_rule.py", "tests/myfla/test_gated_deltanet.py"
DPLR_RULE, RWKV_OPS = (f"tests/myfla/ops/test_{name}.py" for name in ("dplr", "rwkv7_ops"))
RWKV_LAYER = "tests/myfla/layers/test_rwkv7_layer.py"
NORMS, SHIFT = "tests/myfla/modules/test_norms.py", "tests/myfla/modules/test_token_shift.py"
BLOCKS, ATTENTION = "tests/myfla/ops/test_blocks.py", "tests/myfla/modules/test_attention.py"
ALGEBRA, STEM = "tests/myfla/ops/test_bf16_algebra.py", "tests/encoders/test_stem.py"
BF16 = "libs/myfla/ops/_delta/bf16/"
CACHE, BATCH = "tests/myfla/cache/test_cache.py tests/myfla/cache/test_cache_sessions.py", "tests/encoders/test_batch.py"
SSD, SSD_RULE, MAMBA = OPS + "ssd/", "tests/myfla/ops/test_ssd.py", "tests/myfla/layers/test_mamba2.py"
MEMBERS, OPTIONS = "tests/myfla/ops/test_family.py", "tests/myfla/ops/test_family_options.py"
FAMILY_LAYERS = "tests/myfla/layers/test_family_layers.py"
POOLING, MASKS = "tests/encoders/test_pooling.py", "tests/myfla/layers/test_layer_utils.py"

MUTANTS: List[Mutant] = [
    # the specification
    Mutant("naive: no decay", ENGINE + "naive.py", "decayed = decay * state\n", "decayed = 1.0 * state\n", RULE),
    Mutant("naive: sign of the error", ENGINE + "naive.py", "error = v - _read(", "error = v + _read(", RULE),
    Mutant("naive chunk: system twice as large", OPS + "common/naive.py", "decayed_products(ec, kc, seen, c, -1)",
           "2 * decayed_products(ec, kc, seen, c, -1)", RULE),
    Mutant("naive chunk: decay to the end", OPS + "common/naive.py", "(kc * (last - c).exp()", "(kc * (last - 2 * c).exp()", RULE),
    Mutant("naive chunk: a key that reads after its decay", OPS + "common/naive.py", "seen = c - gc if before else c", "seen = c", OPTIONS),
    # the wider family
    Mutant("delta product: decay on the last step", OPS + "gated_delta_product/steps.py", "_on_step(g, n, 0)", "_on_step(g, n, n - 1)", MEMBERS),
    Mutant("delta product: output after the first step", OPS + "gated_delta_product/steps.py", ".view(batch, tokens, n, *o.shape[2:])[:, :, -1]", ".view(batch, tokens, n, *o.shape[2:])[:, :, 0]", MEMBERS),
    Mutant("delta product packed: offsets of tokens", OPS + "gated_delta_product/steps.py", "None if cu_seqlens is None else cu_seqlens * n", "cu_seqlens", MEMBERS),
    Mutant("comba: erases what it writes", OPS + "comba/as_dplr.py", "(q, writes, v, -p, writes,", "(q, writes, v, -k, writes,", MEMBERS),
    Mutant("gdn2: reads before the decay", OPS + "gdn2/as_dplr.py", "-(b.to(wide) * k) * g.exp(), k, g", "-(b.to(wide) * k), k, g", MEMBERS),
    Mutant("gdn2: values without their gate", OPS + "gdn2/as_dplr.py", "w.to(wide) * v.to(wide)", "v.to(wide)", MEMBERS),
    Mutant("tied dplr: sign of what is removed", FAMILIES + "dplr.py", "block.load(a, left[:, chunk:], pad=False).neg_()", "block.load(a, left[:, chunk:], pad=False)", MEMBERS),
    Mutant("tied dplr backward: sign of what is removed", FAMILIES + "dplr.py", "dleft[:, chunk:].neg_()\n        for dx, out in zip((dq, dright, da, dgk)", "dleft[:, chunk:]\n        for dx, out in zip((dq, dright, da, dgk)", MEMBERS),
    Mutant("gla: scale forgotten", FAMILIES + "gla.py", "block.load(q, left, pad=False).mul_(options.scale)", "block.load(q, left, pad=False)", MEMBERS),
    Mutant("gla backward: scale forgotten", FAMILIES + "gla.py", "zip((dleft.mul_(options.scale), dright, dg)", "zip((dleft, dright, dg)", MEMBERS),
    Mutant("simple gla: pads write", FAMILIES + "gla.py", "block.load(k, keys)  # no", "block.load(k, keys, pad=False)  # no", MEMBERS),
    Mutant("backwards: outputs not turned", OPS + "common/run_rule.py", "o = reverse_sequences(o, cu_seqlens) if reverse else o", "o = o", OPTIONS),
    Mutant("simple gla: decay of heads forgotten", OPS + "simple_gla/decays.py", "return g_gamma.to(accumulation_dtype(g_gamma, v)).expand(v.shape[:3])", "return 0 * g_gamma.to(accumulation_dtype(g_gamma, v)).expand(v.shape[:3])", OPTIONS),
    Mutant("states of chunks: of another sequence", OPS + "common/chunk_states.py", "states[key] for key in sorted(states)", "states[key] for key in sorted(states, key=lambda one: one[::-1])", OPTIONS),
    Mutant("members: final state not turned", OPS + "common/run_rule.py", "final = final.transpose(2, 3) if v_first else final", "final = final", OPTIONS),
    Mutant("DeltaNet: no negative eigenvalues", LAYERS + "delta_net.py", "beta_sigmoid(project(self.b_proj, x), self.allow_neg_eigval)", "beta_sigmoid(project(self.b_proj, x))", FAMILY_LAYERS),
    Mutant("DeltaNet: without learned strengths not doubled", LAYERS + "delta_net.py", "2.0 if self.allow_neg_eigval else 1.0", "1.0", FAMILY_LAYERS),
    Mutant("GatedLinearAttention: feature map of queries alone", LAYERS + "gla.py", "ACTIVATIONS[self.feature_map](q), ACTIVATIONS[self.feature_map](k)", "ACTIVATIONS[self.feature_map](q), k", FAMILY_LAYERS),
    Mutant("Comba: erasing keys not scaled", LAYERS + "comba.py", "(k * self.decay[:, None].sigmoid()).to(k.dtype)", "(k * self.decay[:, None]).to(k.dtype)", FAMILY_LAYERS),
    Mutant("GatedDeltaNet2: write gate doubled too", LAYERS + "gdn2.py", "w = beta_sigmoid(project(self.w_proj, x))", "w = beta_sigmoid(project(self.w_proj, x), True)", FAMILY_LAYERS),
    Mutant("GatedLinearAttention: decay not normalised", LAYERS + "gla.py", "F.logsigmoid(gate.to(accumulation_dtype(gate))) / self.gate_logit_normalizer", "F.logsigmoid(gate.to(accumulation_dtype(gate)))", FAMILY_LAYERS),
    # the state space dual
    Mutant("ssd: values without their time step", SSD + "inputs.py", "self.x.to(self.dtype) * dt.unsqueeze(-1)", "self.x.to(self.dtype)", SSD_RULE),
    Mutant("ssd: decay without its time step", SSD + "inputs.py", "dt * self.A.to(self.dtype)", "self.A.to(self.dtype).expand_as(dt)", SSD_RULE),
    Mutant("ssd: limits not applied", SSD + "inputs.py", "return dt if without_effect else", "return dt if True else", SSD_RULE),
    Mutant("ssd: gate before what passes by", SSD + "inputs.py", "o = o * F.silu(self.z.to(self.dtype))", "o = o + F.silu(self.z.to(self.dtype))", SSD_RULE),
    Mutant("ssd: rounded before the end", SSD + "inputs.py", "if self.D is None and self.z is None else self.dtype", "if True else self.dtype", SSD_RULE),
    Mutant("ssd packed: state of the wrong sequence", SSD + "mamba.py", "last[:-1] + 1", "last[:-1]", SSD_RULE),
    Mutant("ssd packed: first token's number", SSD + "mamba.py", "starts[:, 1:] = seq_idx[:, 1:] != seq_idx[:, :-1]", "starts[:, 1:] = seq_idx[:, 1:] > seq_idx[:, :-1]", SSD_RULE),
    Mutant("ssd step: another row written", SSD + "state_update.py", "state.index_copy_(0, rows,", "state.index_copy_(0, rows.flip(0),", SSD_RULE),
    Mutant("Mamba2: norm over all groups", LAYERS + "mamba2.py", "RMSNormGated(self.intermediate_size, norm_eps, group,", "RMSNormGated(self.intermediate_size, norm_eps, None,", MAMBA),
    Mutant("Mamba2: B for C", LAYERS + "mamba2.py", "u, B, C = mixed", "u, C, B = mixed", MAMBA),
    # the gate
    Mutant("gate: growth for decay", GDN + "gate.py", "decay = -A_log", "decay = A_log", RULE + " " + LAYER),
    Mutant("gate: no softplus", GDN + "gate.py", "* F.softplus(x)\n    return", "* x\n    return", RULE),
    Mutant("gate: bias subtracted", GDN + "gate.py", "g.to(dtype) + dt_bias.to(dtype)\n    decay",
           "g.to(dtype) - dt_bias.to(dtype)\n    decay", RULE),
    Mutant("gate: beta's factor 2 forgotten", GDN + "gate.py", "return strength * 2 if", "return strength * 1 if", LAYER),
    Mutant("gate backward: sign of A_log", GDN + "gate.py", "dA_log = (dyg * rate", "dA_log = (dyg * -rate", RULE),
    # the chunk form
    Mutant("chunk: decay not summed", ENGINE + "chunk/decay.py", "clamp_(min=FLOOR).cumsum_(1)", "clamp_(min=FLOOR)", RULE),
    Mutant("chunk: decay from the start for that to the end", ENGINE + "chunk/decay.py", "copy_((c[:, -1:] - c)", "copy_((c - c[:, :1])", RULE),
    Mutant("chunk: scale forgotten", ENGINE + "chunk/decay.py", "torch.mul(exp_g, scale, out=", "torch.mul(exp_g, 1.0, out=", RULE),
    Mutant("chunk: scale forgotten within", FAMILIES + "gated_delta.py", "mul_(mask.unsqueeze(1))[:, 0].mul_(options.scale)", "mul_(mask.unsqueeze(1))", RULE),
    Mutant("chunk: the first state is always zero", ENGINE + "chunk/engine.py", "zero_state = initial_state is None and block.first_step == 0", "zero_state = block.first_step == 0", RULE),
    Mutant("chunk scan: state not decayed", ENGINE + "chunk/recurrence.py", "torch.mul(state, g, out=after)", "torch.mul(state, 1.0, out=after)", RULE),
    Mutant("chunk scan: sign of what is erased", ENGINE + "chunk/recurrence.py", "value.baddbmm_(k, state, alpha=-1)", "value.baddbmm_(k, state)", RULE),
    Mutant("chunk scan back: decay dropped", ENGINE + "chunk/recurrence.py", "dh.mul_(g).baddbmm_(qk, out)", "dh.baddbmm_(qk, out)", RULE),
    Mutant("chunk scan back: the last state's gradient is always zero", ENGINE + "chunk/engine.py", "dfinal is None and block is blocks[-1]", "block is blocks[-1]", RULE),
    Mutant("chunk backward: sum over the past", ENGINE + "chunk/decay.py", "reads.flip(1).cumsum_(1).flip(1)", "reads.cumsum(1)", RULE),
    Mutant("chunk backward: the incoming state", FAMILIES + "gated_delta.py", "writes, d.g_last * decays.g_last_exp", "writes, -d.g_last * decays.g_last_exp", RULE),
    Mutant("chunk backward: dbeta without itself", FAMILIES + "gated_delta.py", "dbeta.add_(self_reads)", "pass", RULE),
    Mutant("chunk backward: writes of later tokens", ENGINE + "chunk/decay.py", "writes[:, :-1].cumsum(1)", "writes[:, 1:].cumsum(1)", RULE),
    Mutant("chunk backward: pairs not transposed", FAMILIES + "gated_delta.py", "baddbmm_(dA.transpose(1, 2), qk)", "baddbmm_(dA.transpose(1, 2).flip(1), qk)", RULE),
    # the recurrent form
    Mutant("recurrent: q and k swapped", ENGINE + "recurrent/step.py", "torch.stack((k, q), dim=-2)", "torch.stack((q, k), dim=-2)", RULE),
    Mutant("recurrent: heads grouped otherwise", ENGINE + "recurrent/step.py", "read.repeat_interleave(heads // own, dim=-3)",
           "read.repeat(*[1] * (read.dim() - 3), heads // own, 1, 1)", RULE),
    Mutant("recurrent: no decay", ENGINE + "recurrent/step.py", "state = torch.mul(state, decay, out=new)", "state = torch.mul(state, 1.0, out=new)", RULE),
    Mutant("recurrent: blocks of rows turned round", ENGINE + "recurrent/loop.py", "for part in zip(*(t.split(block) for t in (old, new, *step)))]",
           "for part in reversed(list(zip(*(t.split(block) for t in (old, new, *step)))))]", "tests/myfla/ops/test_inplace_state.py " + BLOCKS),
    Mutant("decoding step: own share forgotten", ENGINE + "recurrent/step.py", "(keys * queries).sum(-1, keepdim=True)",
           "(0 * keys).sum(-1, keepdim=True)", DECODE),
    Mutant("decoding step: writes the caller's state", ENGINE + "recurrent/loop.py", "new = state if inplace else", "new = state if True else", DECODE),
    Mutant("planned call: of any size", ENGINE + "plans.py", "key += (x.dtype, x.shape,", "key += (x.dtype, x.dim(),", PLANNED),
    Mutant("planned call: of any strides", ENGINE + "plans.py", "x.stride(), x.is_neg()", "x.is_neg()", PLANNED),
    Mutant("planned call: of any options", ENGINE + "plans.py", "torch.get_num_threads(), *options]", "torch.get_num_threads()]", PLANNED),
    Mutant("planned call: where autograd records", ENGINE + "plans.py", "graph and x.requires_grad", "False and x.requires_grad", PLANNED),
    Mutant("planned call: of any number of threads", ENGINE + "plans.py", "torch.get_num_threads(), *options]", "*options]", PLANNED),
    Mutant("planned call: offsets not checked", OPS + "common/run_rule.py", "check_cu_seqlens(who, cu_seqlens, 1, tokens)", "pass", PLANNED),
    Mutant("planned call: equal keys taken for one", RWKV + "chunk.py", "lower_bound, b is k, backend", "lower_bound, backend", PLANNED),
    Mutant("planned call: unprepared", ENGINE + "chunk/autograd.py", "known, ready = plan, prepared is call", "known, ready = plan, True", PLANNED),
    Mutant("dplr decoding step: read after decay", ENGINE + "recurrent/step.py", "read(torch.stack((a, q * decay), dim=1), state)",
           "read(torch.stack((a * decay, q * decay), dim=1), state)", DECODE),
    # the other family
    Mutant("dplr: sign of what is removed", FAMILIES + "dplr.py", "block.load(a, left[:, chunk:], pad=False).mul_(-1.0)", "block.load(a, left[:, chunk:], pad=False)", DPLR_RULE),
    Mutant("dplr recurrent: own decay forgotten", ENGINE + "recurrent/step.py", "torch.mul(state, decay.unsqueeze(2), out=new)", "torch.mul(state, 1.0, out=new)", DPLR_RULE),
    Mutant("dplr recurrent: own share forgotten", ENGINE + "recurrent/step.py", ".addcmul_(own[:, 1], v)", "", DPLR_RULE),
    Mutant("dplr strong decay: own decay counted in a's read", ENGINE + "chunk/strong_decays.py", "exclusive if row and before else self.c", "self.c", DPLR_RULE),
    Mutant("dplr strong decay: token's read of itself", ENGINE + "chunk/strong_decays.py", "copy_((self.left[:, :1] * self.right).sum(-1))", "copy_((self.left[:, :1] * self.left).sum(-1))", DPLR_RULE),
    Mutant("traced step: own share forgotten", ENGINE + "traced/step.py", "(q * old).sum(2) + (q * k).sum(2) * delta",
           "(q * old).sum(2)", "tests/myfla/ops/test_traced_step.py"),
    Mutant("dplr backward: write to the end not counted", FAMILIES + "dplr.py", "out=values).baddbmm_(c.out[:, chunk:], dkv)", "out=values)", DPLR_RULE),
    Mutant("channel backward: left not counted", FAMILIES + "channel.py", "dleft.baddbmm_(dA, c.right)", "dleft.baddbmm_(dA, c.right, alpha=-1)", DPLR_RULE),
    Mutant("channel backward: a token's read of itself", FAMILIES + "channel.py", "drights[:, kind].addcmul_(queries, self_reads[kind])", "pass", DPLR_RULE),
    Mutant("kda: keys that write without beta", FAMILIES + "kda.py", "torch.mul(left[:, chunk:], strength, out=right)", "right.copy_(left[:, chunk:])", "tests/myfla/ops/test_kda.py"),
    Mutant("kda backward: dbeta of another token", FAMILIES + "kda.py", "torch.mul(keys, dright, out=keys)", "torch.mul(keys, dright.flip(1), out=keys)", "tests/myfla/ops/test_kda.py"),
    Mutant("bf16: decay to the start for that to the end", BF16 + "gated_delta.py", "(c[:, -1:] - c).to(dtype).exp()",
           "c.to(dtype).exp()", ALGEBRA),
    Mutant("bf16: corner's sign", BF16 + "inverse.py", "top), alpha=-1.0)", "top), alpha=1.0)", ALGEBRA),
    Mutant("bf16: what is erased is added", BF16 + "form.py", "p.k_in, alpha=-1.0", "p.k_in, alpha=1.0", ALGEBRA),
    Mutant("bf16 backward: a key sees itself", BF16 + "gated_delta.py", "-f.key, True)):", "-f.key, False)):", ALGEBRA),
    Mutant("bf16 backward: decay gradient of writes that are none", BF16 + "gated_delta.py", "k_dk - k_dk_write * writes",
           "k_dk - k_dk_write", ALGEBRA),
    Mutant("bf16 backward: a row's transition not transposed", BF16 + "scan.py",
           "transitions.transpose(2, 3) if back else transitions", "transitions", ALGEBRA),
    Mutant("bf16: packed rows in the order given", BF16 + "layout.py", "sequence[order], part[order], size[order]",
           "sequence, part, size[order]", ALGEBRA),
    Mutant("bf16: places past an end are not zero", BF16 + "layout.py", "if self.filled is not None:", "if False:", ALGEBRA),
    Mutant("bf16 channels: own decay counted in a's read", BF16 + "channels.py",
           "torch.nn.functional.pad(c[:, :-1], (0, 0, 1, 0)) if before else c", "c", ALGEBRA),
    Mutant("bf16 channels: reference a token late", ENGINE + "subchunks.py", "at - 1 : at]", "at : at + 1]",
           "tests/myfla/ops/test_bf16_parts.py"),
    # RWKV-7's gates and layer
    Mutant("rwkv7: key update's minus one", RWKV + "key_gates.py", "key = wide * (1 + (rate - 1)", "key = wide * (1 + (rate)",
           RWKV_OPS),
    Mutant("rwkv7: values mixed the other way", RWKV + "value_residual.py", "wide, share = v.to(dtype), torch.sigmoid(",
           "wide, share = v.to(dtype), 1 - torch.sigmoid(", RWKV_OPS),
    Mutant("rwkv7: first values of a later layer", LAYERS + "rwkv7.py", "if self.layer_idx != 0 and v_first is not None else",
           "if self.layer_idx == 0 and v_first is not None else", RWKV_LAYER),
    Mutant("rwkv7: r and k mixtures swapped", LAYERS + "rwkv7_core.py",
           "(layer.x_r, layer.x_w, layer.x_k,", "(layer.x_k, layer.x_w, layer.x_r,", RWKV_LAYER),
    # the layer
    Mutant("layer: q and k swapped", LAYERS + "gated_deltanet.py", "(q, k, v), conv_state = self._qkv",
           "(k, q, v), conv_state = self._qkv", LAYER),
    Mutant("layer: queries and keys not normalised", LAYERS + "gated_deltanet.py", "use_qk_l2norm_in_kernel=True",
           "use_qk_l2norm_in_kernel=False", LAYER),
    Mutant("layer: threshold of the forms", LAYERS + "recurrent_layer.py", "q_len > 64 and", "q_len > 640 and", LAYER),
    Mutant("layer: gradients take the recurrent form", LAYERS + "recurrent_layer.py",
           "if torch.is_grad_enabled() or self.training:", "if self.training:", LAYER),
    Mutant("attention: window larger by one", LAYERS + "attn_core.py", "key > query - window", "key >= query - window",
           ATTENTION),
    Mutant("attention: pads of before have places", LAYERS + "attn.py", "seen if before is None else before[row])",
           "seen if before is None else 0 * before[row] + seen)", ATTENTION),
    Mutant("attention: heads grouped otherwise", LAYERS + "attn_core.py", "k.repeat_interleave(group, 2), v.repeat",
           "k.repeat(1, 1, group, 1), v.repeat", ATTENTION),
    Mutant("attention: positions begin anew in every call", LAYERS + "attn.py",
           "seen = past_key_values.get_seq_length(self.layer_idx) if", "seen = 0 if", ATTENTION),
    Mutant("attention: pads of the past are keys", LAYERS + "attn.py",
           "held = held if before is None else before.to(q.device).clamp(max=stored)", "pass", ATTENTION),
    Mutant("attention: queries and keys not normalised", LAYERS + "attn.py",
           "q, k = self.q_norm(q).to(x.dtype), self.k_norm(k).to(x.dtype)", "pass", ATTENTION),
    Mutant("attention state: a real token given up", MODELS + "attention_state.py", "place >= size - added, place",
           "place > size - added, place", ATTENTION),
    Mutant("attention state: zeros behind the tokens", MODELS + "attention_state.py",
           "torch.cat([t.new_zeros(t.shape[0], longest - t.shape[1], *t.shape[2:]), t], 1)",
           "torch.cat([t, t.new_zeros(t.shape[0], longest - t.shape[1], *t.shape[2:])], 1)", ATTENTION),
    # masks, packing, caches
    Mutant("packing: places past an end not emptied", ENGINE + "layout.py", "cut.flatten(1, 2).transpose(1, 2)[self.padding] = 0", "pass",
           RULE + " " + DPLR_RULE),
    Mutant("packing: padding of another block", ENGINE + "layout.py", "layout.padding[0][first:last] - start,",
           "layout.padding[0][first:last],", BLOCKS + " tests/myfla/utils/test_varlen.py"),
    Mutant("packing: states in another order", ENGINE + "layout.py",
           "torch.zeros_like(state).index_copy(0, order, state)", "state", RULE),
    Mutant("mask: shifted by one", LAYERS + "layer_inputs.py", "attention_mask[:, attention_mask.shape[1] - q_len :]",
           "attention_mask.roll(1, 1)[:, attention_mask.shape[1] - q_len :]", LAYER),
    Mutant("mask: last columns not taken", LAYERS + "utils.py", "attention_mask = attention_mask[:, total - q_len :]",
           "attention_mask = attention_mask[:, :q_len]", MASKS),
    Mutant("padding: rows and columns", LAYERS + "utils.py", "rows.view(batch_size, seq_len, *rows.shape[1:])",
           "rows.view(seq_len, batch_size, *rows.shape[1:]).transpose(0, 1)", MASKS),
    Mutant("cache: state not transposed for fla", MODELS + "cache_layout.py", "tensor.transpose(-1, -2).contiguous()",
           "tensor.contiguous()", CACHE),
    Mutant("cache: tokens counted twice", MODELS + "cache_layer.py", "self._seen_tokens += offset",
           "self._seen_tokens += 2 * offset", CACHE),
    Mutant("cache: pads not counted", MODELS + "cache_layer.py", "skipped = offset - self._checked(lengths)",
           "skipped = offset - 0 * self._checked(lengths)", CACHE),
    Mutant("cache: real lengths", MODELS + "cache_layer.py", "return self._seen_tokens - self._pads",
           "return self._seen_tokens + self._pads", CACHE),
    # modules and encoders
    Mutant("norm: not centred", MODULES + "norm_core.py", "rows = rows - rows.mean(-1, keepdim=True)", "rows = rows", NORMS
           + " tests/export/test_plain.py tests/myfla/modules/test_norm_modules.py"),
    Mutant("norm backward: share's sign", MODULES + "norm_core.py", "(unit, share, value=-1 /", "(unit, share, value=1 /",
           NORMS),
    Mutant("norm backward: gate ignored", MODULES + "norm_core.py", "dnorm = dy if gate is None else dy * gate",
           "dnorm = dy", NORMS),
    Mutant("convolution backward: blocks do not meet", MODULES + "conv_taps.py",
           "window[:, n : n + width - 1] = window[:, : width - 1].clone()", "window[:, n:] = 0", BLOCKS),
    Mutant("convolution backward: block's first tokens", MODULES + "conv_taps.py", "first = max(start, s)",
           "first = start + s", BLOCKS),
    Mutant("convolution backward: past of the first block only", MODULES + "conv_taps.py",
           "if start < width - 1 and history", "if start == 0 and history", BLOCKS),
    Mutant("blocks: the last is the short one", MODULES + "blocks.py", "for end in range(tokens, 0, -step):",
           "for end in reversed(range(step, tokens + step, step)):", BLOCKS),
    Mutant("norm backward: rows of the first block only", MODULES + "norm_core.py", "dweight += along.view",
           "dweight[:] = along.view", BLOCKS),
    Mutant("shift: next for previous", MODULES + "token_shift.py",
           "torch.cat((torch.zeros_like(x[:, :1]), x[:, :-1]), dim=1) - x",
           "torch.cat((x[:, 1:], torch.zeros_like(x[:, :1])), dim=1) - x", SHIFT),
    Mutant("cache: in place without memory of its own", MODELS + "utils.py", "self._copy(own_state, lambda counts: counts,",
           "self._copy(lambda field, tensor: tensor, lambda counts: counts,", "tests/myfla/cache/test_cache_inplace.py"),
    Mutant("stem: sees one step ahead", "src/encoders/stem/strided.py", "(self.kernel_size - each, missing)",
           "(self.kernel_size - each - 1, missing + 1)", STEM),
    Mutant("stem: what follows an end is data", "src/encoders/stem/strided.py",
           "x = torch.where(inside(lengths, steps)[..., None], x,",
           "x = torch.where(inside(lengths, steps)[..., None], x, x + 0 *", STEM),
    Mutant("stem: windows are not centred", "src/encoders/stem/inception.py", "before = (kernel - 1) // 2",
           "before = kernel // 2", STEM),
    Mutant("stem: a tap too old", "src/encoders/stem/inception.py", "index = lengths[:, None] + torch.arange(",
           "index = (lengths[:, None] - 1).clamp(min=0) + torch.arange(", "tests/encoders/test_state_properties.py"),
    Mutant("stem: pads are counted", "src/encoders/stem/batch_norm.py", "if real is None else x.transpose(1, 2)[real]",
           "", STEM),
    Mutant("stem: a step that is not full is dropped", "src/encoders/stem/rows.py", "torch.div(lengths + (stride - 1), stride",
           "torch.div(lengths, stride", STEM),
    Mutant("running pooling: mean forgets what was", "src/encoders/running_pooling.py",
           "left[0] + right[0], left[1] + right[1]", "right[0], left[1] + right[1]", "tests/encoders/test_running_pooling.py"),
    Mutant("resume: generators begin anew", "src/encoders/training/loop/resume.py", 'torch.set_rng_state(own["cpu"])', "pass",
           "tests/app/test_train_resume.py::test_wherever_it_is_cut_off_the_run_ends_the_same"),
    Mutant("stream: the journal's last rows taken twice", "src/app/streaming/engine.py", "new = seqs > self.pool.seqs",
           "new = seqs >= self.pool.seqs",
           "tests/app/test_stream_service.py::test_a_kill_anywhere_changes_nothing"),
    Mutant("encode: part of a neighbour", "src/app/encoding/plan.py", "range(part * size, min((part + 1) * size,",
           "range(part * size, min((part + 1) * size + 1,",
           "tests/app/test_encode.py::test_every_sequence_is_in_one_part_of_one_process"),
    Mutant("batch: one token too many", "src/encoders/batch.py", "device=x.device) < counts[:, None]",
           "device=x.device) <= counts[:, None]", BATCH),
    Mutant("pooling: mean by one more", "src/encoders/pooling.py", "layout.lengths.clamp(min=1)[:, None]",
           "(layout.lengths + 1)[:, None]", POOLING),
]  # fmt: skip


def check(rows: List[Mutant]) -> List[str]:
    """What is wrong with the rows themselves."""
    wrong = []
    for row in rows:
        found = (ROOT / row.file).read_text(encoding="utf-8").count(row.old)
        if found != 1:
            wrong.append(f"{row.name}: its text is {found} times in {row.file}, not once")
        missing = [test for test in row.tests.split() if not (ROOT / test.split("::")[0]).is_file()]
        if missing:
            wrong.append(f"{row.name}: no such test file: {', '.join(missing)}")
    return wrong


def survives(row: Mutant, copy: Path) -> bool:
    """Whether the tests pass with that change."""
    path = copy / row.file
    whole = path.read_text(encoding="utf-8")
    path.write_text(whole.replace(row.old, row.new, 1), encoding="utf-8")
    try:
        command = [sys.executable, "-B", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *row.tests.split()]
        done = subprocess.run(command, cwd=str(copy), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    finally:
        path.write_text(whole, encoding="utf-8")
    if done.returncode not in (0, 1):
        raise SystemExit(f"{row.name}: pytest itself failed:\n{done.stdout.decode()[-2000:]}")
    return done.returncode == 0


def main() -> None:
    """Exit with 1 if a row is out of date, or a mutant survives."""
    words = [word for word in sys.argv[1:] if not word.startswith("--")]
    rows = [row for row in MUTANTS if not words or any(word in row.name for word in words)]
    wrong = check(rows)
    if wrong or "--check" in sys.argv or not rows:
        print("\n".join(wrong) or f"{len(rows)} mutants, every line is there")
        sys.exit(1 if wrong or not rows else 0)
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        copy.mkdir()
        for name in TREE:
            source, target = ROOT / name, copy / name
            if source.is_dir():
                shutil.copytree(str(source), str(target), ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(str(source), str(target))
        for row in rows:
            alive = survives(row, copy)
            survivors += [row.name] if alive else []
            print(f"{'SURVIVES' if alive else 'killed':8} {row.name}", flush=True)
    print(f"{len(rows)} mutants, {len(rows) - len(survivors)} killed, {len(survivors)} survive")
    sys.exit(1 if survivors else 0)


if __name__ == "__main__":
    main()
