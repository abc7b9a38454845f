"""A right call of every public function and module that takes tensors, for `fuzz` to spoil."""

from typing import Dict

import torch

import gdn_layer
import rwkv7_layers
from encoders.pipeline import InputPipeline
from fuzz_family import CU, FAMILY, MASK, Call, draw
from myfla import modules
from myfla.layers import Attention
from myfla.layers.utils import get_unpad_data, index_first_axis, index_put_first_axis, pad_input, unpad_input
from myfla.models.rwkv7 import RWKV7FeedForward
from myfla.models.utils import Cache
from myfla.modules import convolution, norm
from myfla.modules.rotary import rotary_embedding
from myfla.modules.token_shift import token_shift
from myfla.ops import utils as index
from myfla.ops.gated_delta_rule import naive_chunk_gated_delta_rule, naive_recurrent_gated_delta_rule
from myfla.ops.generalized_delta_rule import chunk_dplr_delta_rule, fused_recurrent_dplr_delta_rule
from myfla.ops.rwkv7 import fused_mul_recurrent_rwkv7
from small_encoders import small
from small_models import VOCABULARY, small_model
from state_subjects import OPS, op_state


def _op(name):
    def arguments():
        given = OPS[name].inputs(2, 5)
        return {**given, "scale": 0.5, "initial_state": op_state(name, 2), "output_final_state": True,
                "cu_seqlens": None}

    return Call(lambda dtype: OPS[name].function, arguments)


def _packed_op(name):
    def arguments():
        given = OPS[name].inputs(1, 7)
        return {**given, "initial_state": op_state(name, 3), "output_final_state": True,
                "cu_seqlens": torch.tensor([0, 2, 2, 7])}

    return Call(lambda dtype: OPS[name].function, arguments)


def _gdn_options(name):
    """All that may be done inside of the op: gates, norms, strengths; states value-first."""
    def arguments():
        given = OPS[name].inputs(2, 5)
        return {**given, "initial_state": op_state(name, 2).transpose(-1, -2).contiguous(), "output_final_state": True,
                "use_qk_l2norm_in_kernel": True, "use_beta_sigmoid_in_kernel": True, "allow_neg_eigval": True,
                "state_v_first": True, "use_gate_in_kernel": True, "A_log": draw(4), "dt_bias": draw(4, seed=1)}

    return Call(lambda dtype: OPS[name].function, arguments)


def _vector_gates():
    given = OPS["gdn_recurrent"].inputs(2, 5)
    return {**given, "gk": -draw(2, 5, 4, 8).abs(), "gv": -draw(2, 5, 4, 6).abs(), "output_final_state": True}


def _naive(function, **more):
    def arguments():
        given = OPS["gdn_chunk"].inputs(2, 5)
        given.update((name, given[name].repeat_interleave(2, 2)) for name in "qk")
        return {**given, "scale": 0.5, "initial_state": op_state("gdn_chunk", 2), "output_final_state": True, **more}

    return Call(lambda dtype: function, arguments)


def _dplr(function):
    def arguments():
        given = OPS["rwkv7_chunk"].inputs(2, 5)
        return dict(q=given["r"], k=given["k"], v=given["v"], a=given["a"], b=given["b"], gk=given["w"],
                    initial_state=op_state("rwkv7_chunk", 2), output_final_state=True)

    return Call(lambda dtype: function, arguments)


def _fused_mul():
    given = OPS["rwkv7_chunk"].inputs(2, 5)
    return dict(r=given["r"], w=given["w"], k=given["k"], v=given["v"], kk=-given["a"], a=given["b"].abs(),
                initial_state=op_state("rwkv7_chunk", 2), output_final_state=True)


def _module(build, *names, shape=(2, 5, 8), **more):
    def make(dtype):
        torch.manual_seed(0)
        return build().to(dtype).eval()

    return Call(make, lambda: {**{name: draw(*shape, seed=i) for i, name in enumerate(names)}, **more})


def _gdn_layer(dtype):
    layer = gdn_layer.build().to(dtype).eval()
    return lambda hidden_states, attention_mask, cu_seqlens: layer(
        hidden_states, attention_mask=attention_mask, cu_seqlens=cu_seqlens)[0]


def _rwkv7_layer(dtype):
    torch.manual_seed(0)  # the parameters that begin at random
    layer = rwkv7_layers.build(0).to(dtype).eval()
    return lambda hidden_states, attention_mask, cu_seqlens: layer(
        hidden_states, attention_mask=attention_mask, cu_seqlens=cu_seqlens)[0]


def _attention(dtype):
    torch.manual_seed(0)
    layer = Attention(hidden_size=16, num_heads=2, num_kv_heads=1, qk_norm=True, window_size=3, layer_idx=0)
    layer = layer.to(dtype).eval()
    return lambda hidden_states, attention_mask, cu_seqlens: layer(
        hidden_states, attention_mask=attention_mask, cu_seqlens=cu_seqlens)[0]


def _encoder(name, **changes):
    def make(dtype):
        encoder = small(name, **changes).to(dtype)
        return lambda x, lengths, attention_mask, cu_seqlens: encoder(
            x, lengths=lengths, attention_mask=attention_mask, cu_seqlens=cu_seqlens)[:2]

    return make


def _raw_encoder(name, missing="error", own_scale=False, **changes):
    """An encoder with its input pipeline: raw data in, on other scales and with values missing."""
    def make(dtype):
        encoder, data = small(name, **changes).to(dtype), draw(4, 6, 3, seed=7).double() * 5 + 40
        if encoder.config.vocab_size is None:
            encoder.pipeline = InputPipeline.fit(list(data), None, missing, True, own_scale)
        else:
            encoder.pipeline = InputPipeline.tokens(encoder.config.vocab_size)
        return encoder

    return make


def _raw(name, missing="error", own_scale=False, **changes):
    make = _raw_encoder(name, missing, own_scale, **changes)

    def call(dtype):
        encoder = make(dtype)
        return lambda x, lengths, attention_mask, cu_seqlens: encoder(
            x, lengths=lengths, attention_mask=attention_mask, cu_seqlens=cu_seqlens)[:2]

    return call


def _encode(name, per_step=False, **changes):
    """What people call on data of any form: here one batch and two sequences of their own."""
    make = _raw_encoder(name, **changes)

    def call(dtype):
        encoder = make(dtype)
        return lambda batch, first, second: (
            encoder.encode(batch, per_step=per_step), encoder.encode([first, second], per_step=per_step))

    return call


def raw(*shape, seed=0, missing=()):
    """Values as people have them, NaN at some places."""
    x = draw(*shape, seed=seed) * 5 + 40
    for place in missing:
        x[place] = float("nan")
    return x


def _continued(build, width):
    """A layer that goes on from a cache; the cache that it was given is there for the next call."""
    def make(dtype):
        torch.manual_seed(0)
        layer, cache = build().to(dtype).eval(), Cache()
        with torch.no_grad():
            layer(draw(2, 3, width, seed=5).to(dtype), past_key_values=cache, use_cache=True)
        return lambda hidden_states, attention_mask: layer(
            hidden_states, attention_mask=attention_mask, past_key_values=cache.fork(), use_cache=True)[0]

    return Call(make, lambda: dict(hidden_states=draw(2, 5, width), attention_mask=MASK))


def _rows_of_a_cache(method):
    """What a session's rows are after a method of `Cache`."""
    def make(dtype):
        cache, states = Cache(), draw(3, 2, 2, 2).to(dtype)
        cache.update(recurrent_state=states, layer_idx=0, offset=4)
        return lambda rows: getattr(cache, method)(rows)[0]["recurrent_state"]

    return Call(make, lambda: dict(rows=torch.tensor([2, 0, 1])))


def _model(kind):
    def make(dtype):
        model = small_model(kind, dtype=dtype)
        return lambda input_ids, attention_mask, labels: model(
            input_ids, attention_mask=attention_mask, labels=labels, use_cache=False).to_tuple()[:2]

    ids = torch.arange(10).view(2, 5) % VOCABULARY
    return Call(make, lambda: dict(input_ids=ids.clone(), attention_mask=MASK.clone(), labels=ids.clone()))




def _plain(function, **arguments):
    return Call(lambda dtype: function, lambda: {
        name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in arguments.items()})


SUBJECTS: Dict[str, Call] = {
    **{name: _op(name) for name in OPS},
    **{f"{name}_packed": _packed_op(name) for name in OPS},
    "dplr_chunk": _dplr(chunk_dplr_delta_rule),
    "dplr_recurrent": _dplr(fused_recurrent_dplr_delta_rule),
    **{f"{name}_options": _gdn_options(name) for name in OPS if name.startswith("gdn")},
    "gdn_vector_gates": Call(lambda dtype: OPS["gdn_recurrent"].function, _vector_gates),
    "naive_chunk_gated_delta_rule": _naive(naive_chunk_gated_delta_rule, chunk_size=2),
    "naive_recurrent_gated_delta_rule": _naive(naive_recurrent_gated_delta_rule),
    "rwkv7_fused_mul": Call(lambda dtype: fused_mul_recurrent_rwkv7, _fused_mul),
    "RMSNorm": _module(lambda: modules.RMSNorm(8), "x", "residual"),
    "LayerNorm": _module(lambda: modules.LayerNorm(8, bias=True), "x", "residual"),
    "GroupNorm": _module(lambda: modules.GroupNorm(2, 8), "x", "residual"),
    "L2Norm": _module(lambda: modules.L2Norm(), "x"),
    "FusedRMSNormGated": _module(lambda: modules.FusedRMSNormGated(8), "x", "g", "residual"),
    "FusedLayerNormGated": _module(lambda: modules.FusedLayerNormGated(8), "x", "g", "residual"),
    "GatedMLP": _module(lambda: modules.GatedMLP(8, intermediate_size=12), "x"),
    **{name: _module(lambda name=name: getattr(norm, name)(8), "x", "z")
       for name in ("LayerNormGated", "RMSNormGated")},
    **{name: _module(lambda name=name: getattr(norm, name)(8), "x", "g", "residual")
       for name in ("FusedRMSNormSwishGate", "FusedLayerNormSwishGate")},
    **{name: _module(lambda name=name: getattr(norm, name)(8), "x", "g", "residual", weight=draw(6, 8),
                     bias=draw(6))
       for name in ("FusedRMSNormGatedLinear", "FusedLayerNormGatedLinear", "FusedRMSNormSwishGateLinear",
                    "FusedLayerNormSwishGateLinear")},
    **{name: _module(lambda name=name: getattr(norm, name)(*([2] if name[0] == "G" else []), 8), "x", "residual",
                     weight=draw(6, 8), bias=draw(6))
       for name in ("RMSNormLinear", "LayerNormLinear", "GroupNormLinear")},
    "ShortConvolution": _module(lambda: modules.ShortConvolution(8, 4, activation="silu"), "x", "residual",
                                cache=draw(2, 8, 4), mask=MASK, output_final_state=True, cu_seqlens=None),
    "ShortConvolution_packed": _module(lambda: modules.ShortConvolution(8, 4), "x", shape=(1, 5, 8), cu_seqlens=CU,
                                       cache=draw(3, 8, 4), output_final_state=True),
    "causal_conv1d": _plain(convolution.causal_conv1d, x=draw(1, 5, 8), weight=draw(8, 3), bias=draw(8),
                            residual=draw(1, 5, 8), initial_state=draw(3, 8, 3), output_final_state=True,
                            cu_seqlens=CU),
    "causal_conv1d_update": _plain(convolution.causal_conv1d_update, x=draw(2, 8), cache=draw(2, 8, 3),
                                   residual=draw(2, 8), weight=draw(8, 3), bias=draw(8)),
    "causal_conv1d_update_states": _plain(convolution.causal_conv1d_update_states, x=draw(1, 5, 8), state_len=3,
                                          initial_state=draw(3, 8, 3), cu_seqlens=CU),
    "RWKV7FeedForward": _module(lambda: RWKV7FeedForward(8, layer_idx=0, num_hidden_layers=2), "x",
                                attention_mask=MASK),
    "RotaryEmbedding": _module(lambda: modules.RotaryEmbedding(8), "q", "k", shape=(1, 5, 2, 8), seqlen_offset=3,
                               cu_seqlens=CU),
    "rotary_embedding": _plain(rotary_embedding, x=draw(2, 5, 2, 8), cos=draw(9, 4), sin=draw(9, 4, seed=1),
                               seqlen_offsets=torch.tensor([3, 0])),
    "token_shift": _plain(token_shift, x=draw(1, 5, 8), cu_seqlens=CU),
    **FAMILY,
    "GatedDeltaNet": Call(_gdn_layer, lambda: dict(
        hidden_states=draw(2, 5, gdn_layer.D), attention_mask=MASK, cu_seqlens=None)),
    "RWKV7Attention": Call(_rwkv7_layer, lambda: dict(
        hidden_states=draw(2, 5, 24), attention_mask=MASK, cu_seqlens=None)),
    "GatedDeltaNet_packed": Call(_gdn_layer, lambda: dict(
        hidden_states=draw(1, 5, gdn_layer.D), attention_mask=None, cu_seqlens=CU)),
    "RWKV7Attention_packed": Call(_rwkv7_layer, lambda: dict(
        hidden_states=draw(1, 5, 24), attention_mask=None, cu_seqlens=CU)),
    "Attention": Call(_attention, lambda: dict(
        hidden_states=draw(2, 5, 16), attention_mask=MASK, cu_seqlens=None)),
    "Attention_packed": Call(_attention, lambda: dict(
        hidden_states=draw(1, 5, 16), attention_mask=None, cu_seqlens=CU)),
    "GatedDeltaNet_continued": _continued(gdn_layer.build, gdn_layer.D),
    "RWKV7Attention_continued": _continued(lambda: rwkv7_layers.build(0), 24),
    "Attention_continued": _continued(lambda: Attention(hidden_size=16, num_heads=2, layer_idx=0), 16),
    "Cache.select": _rows_of_a_cache("select"),
    "Cache.reorder": _rows_of_a_cache("reorder"),
    "encoder_attention": Call(_encoder("gated_deltanet", attn=dict(layers=[1], num_heads=2)), lambda: dict(
        x=draw(2, 5, 3), lengths=None, attention_mask=MASK, cu_seqlens=None)),
    "encoder_gdn": Call(_encoder("gated_deltanet"), lambda: dict(
        x=draw(2, 5, 3), lengths=None, attention_mask=MASK, cu_seqlens=None)),
    "encoder_rwkv7": Call(_encoder("rwkv7"), lambda: dict(
        x=draw(2, 5, 3), lengths=torch.tensor([3, 5]), attention_mask=None, cu_seqlens=None)),
    "encoder_packed": Call(_encoder("gated_deltanet"), lambda: dict(
        x=draw(1, 5, 3), lengths=None, attention_mask=None, cu_seqlens=CU)),
    "encoder_gru": Call(_encoder("gru"), lambda: dict(
        x=draw(2, 5, 3), lengths=None, attention_mask=MASK, cu_seqlens=None)),
    "encoder_stem": Call(_encoder("gated_deltanet", stem="conv", stem_stride=2, pooling="attention"), lambda: dict(
        x=draw(2, 5, 3), lengths=[3, 5], attention_mask=None, cu_seqlens=None)),
    "encoder_inception": Call(_encoder("gated_deltanet", stem="inception", stem_kernel=5), lambda: dict(
        x=draw(2, 5, 3), lengths=None, attention_mask=MASK, cu_seqlens=None)),
    "encoder_inception_whole": Call(_encoder("gru", stem="inception", direction="bidirectional"), lambda: dict(
        x=draw(2, 5, 3), lengths=[3, 5], attention_mask=None, cu_seqlens=None)),
    "encoder_tokens": Call(_encoder("rwkv7", vocab_size=9, direction="bidirectional"), lambda: dict(
        x=torch.arange(10).view(2, 5) % 9, lengths=None, attention_mask=MASK, cu_seqlens=None)),
    "pipeline_gdn": Call(_raw("gated_deltanet"), lambda: dict(
        x=raw(2, 5, 3), lengths=None, attention_mask=MASK, cu_seqlens=None)),
    "pipeline_mean": Call(_raw("rwkv7", "mean"), lambda: dict(
        x=raw(2, 5, 3, missing=[(0, 1, 2), (1, 4, 0)]), lengths=torch.tensor([3, 5]), attention_mask=None,
        cu_seqlens=None)),
    "pipeline_forward": Call(_raw("gated_deltanet", "forward", direction="bidirectional"), lambda: dict(
        x=raw(2, 5, 3, missing=[(0, 0, 1), (1, 4, 0)]), lengths=[3, 5], attention_mask=None, cu_seqlens=None)),
    "pipeline_packed": Call(_raw("gated_deltanet", "forward"), lambda: dict(
        x=raw(1, 5, 3, missing=[(0, 2, 1)]), lengths=None, attention_mask=None, cu_seqlens=CU)),
    "pipeline_own_scale": Call(_raw("gru", "mean", True, input_size=6), lambda: dict(
        x=raw(2, 5, 3), lengths=None, attention_mask=MASK, cu_seqlens=None)),
    "pipeline_tokens": Call(_raw("rwkv7", vocab_size=9), lambda: dict(
        x=torch.arange(10).view(2, 5) % 9, lengths=None, attention_mask=MASK, cu_seqlens=None)),
    "encode": Call(_encode("gated_deltanet"), lambda: dict(
        batch=raw(2, 5, 3), first=raw(4, 3, seed=1), second=raw(2, 3, seed=2))),
    "encode_steps": Call(_encode("rwkv7", True, missing="forward"), lambda: dict(
        batch=raw(2, 5, 3, missing=[(0, 1, 2)]), first=raw(4, 3, seed=1), second=raw(2, 3, seed=2))),
    "model_gdn": _model("gated_deltanet"),
    "model_rwkv7": _model("rwkv7"),
    "get_unpad_data": _plain(get_unpad_data, attention_mask=MASK),
    "index_first_axis": _plain(index_first_axis, x=draw(4, 3), indices=torch.tensor([3, 0])),
    "index_put_first_axis": _plain(index_put_first_axis, x=draw(2, 3), indices=torch.tensor([3, 0]), first_axis_dim=5),
    "pad_input": _plain(pad_input, hidden_states=draw(3, 4), indices=torch.tensor([0, 3, 5]), batch_size=2, seq_len=3),
    "unpad_input": _plain(unpad_input, q=draw(2, 5, 3), states=(draw(2, 5, 3),), attention_mask=MASK, q_len=5),
    **{name: _plain(getattr(index, name), cu_seqlens=CU)
       for name in ("prepare_lens", "prepare_position_ids", "prepare_sequence_ids", "prepare_token_indices")},
    **{name: _plain(getattr(index, name), cu_seqlens=CU, chunk_size=2)
       for name in ("prepare_chunk_indices", "prepare_chunk_offsets")},
    "get_max_num_splits": _plain(index.get_max_num_splits, cu_seqlens=CU, chunk_size=2),
    "prepare_chunk_indices_static": _plain(index.prepare_chunk_indices_static, cu_seqlens=CU, chunk_size=2, nt_max=6),
    "prepare_split_cu_seqlens": _plain(index.prepare_split_cu_seqlens, split_size=2, cu_seqlens=CU),
    "prepare_lens_from_mask": _plain(index.prepare_lens_from_mask, mask=MASK),
    "prepare_cu_seqlens_from_mask": _plain(index.prepare_cu_seqlens_from_mask, mask=MASK),
    "prepare_cu_seqlens_from_lens": _plain(index.prepare_cu_seqlens_from_lens, lens=torch.tensor([2, 0, 3])),
}

#: Public functions and modules whose subject has another name.
KNOWN_AS = {
    "TokenShift": "token_shift",
    "chunk_gated_delta_rule": "gdn_chunk", "fused_recurrent_gated_delta_rule": "gdn_recurrent",
    "chunk_dplr_delta_rule": "dplr_chunk", "fused_recurrent_dplr_delta_rule": "dplr_recurrent",
    "chunk_rwkv7": "rwkv7_chunk", "fused_recurrent_rwkv7": "rwkv7_recurrent",
    "fused_mul_recurrent_rwkv7": "rwkv7_fused_mul", "chunk_gdn": "gdn_chunk", "fused_recurrent_gdn": "gdn_recurrent",
    "fused_chunk_gla": "chunk_gla", "fused_chunk_delta_rule": "chunk_delta_rule",
}  # fmt: skip
