"""Calls found by fuzzing that failed deep inside of torch, or gave wrong numbers silently. Now each error names the
caller and the reason."""

import pytest
import torch

import fuzz
from app.data.table import load as load_table
from app.errors import DataError, RunError
from app.streaming.store import FILE, Store
from cfg.data import TableDataConfig
from myfla.testing import cases, raises
from readable_files import KINDS
from state_subjects import OPS, op_state

LONG = torch.int64
FOUND = {  # subject, what is spoilt, what the refusal says
    "naive rank": ("naive_chunk_gated_delta_rule", dict(q=lambda q: q[0]), "q must have shape [B, T, heads, size]"),
    "naive heads": ("naive_recurrent_gated_delta_rule", dict(v=lambda v: torch.cat([v, v], 2)),
                    "v must have the heads of q, H=4"),
    "naive beta": ("naive_chunk_gated_delta_rule", dict(beta=lambda beta: beta[..., :1]), "beta must have shape"),
    "naive state": ("naive_recurrent_gated_delta_rule", dict(initial_state=lambda s: s[..., :2]),
                    "initial_state must be a floating point tensor (2, 4, 8, 6), or broadcast to it"),
    "naive scale": ("naive_chunk_gated_delta_rule", dict(scale="text"), "scale must be a finite number"),
    "naive chunks": ("naive_chunk_gated_delta_rule", dict(chunk_size=0), "chunk_size must be a whole number from 1"),
    "no values": ("gdn_chunk_packed", dict(v=lambda v: v[..., :0], initial_state=lambda s: s[..., :0]),
                  "v must have shape [B, T, heads, size] with sizes from 1"),
    "no keys": ("gdn_recurrent_packed", dict(q=lambda q: q[..., :0], k=lambda k: k[..., :0]),
                "q must have shape [B, T, heads, size] with sizes from 1"),
    "gated scalar": ("LayerNormGated", dict(x=lambda x: x.sum()), "x must be a floating tensor [..., D]"),
    "gated by a number": ("RMSNormGated", dict(z=3), "z must be a tensor; got 'int'"),
    "linear weight": ("RMSNormLinear", dict(weight=0.5), "linear weight must be a tensor; got 'float'"),
    "linear integers": ("GroupNormLinear", dict(weight=lambda w: w.to(LONG)), "and be floating point"),
    "linear bias": ("FusedRMSNormGatedLinear", dict(bias=lambda b: b[:2]), "linear bias must be a floating tensor [6]"),
    "no taps": ("causal_conv1d", dict(weight=lambda w: w[:, :0], initial_state=lambda s: s[..., :0]),
                "weight must have shape [D, W] with W from 1"),
    "convolution bias": ("causal_conv1d", dict(bias=0), "bias must be a tensor; got 'int'"),
    "convolution token": ("causal_conv1d_update", dict(x=None), "x must be a tensor; got 'NoneType'"),
    "no channels": ("causal_conv1d_update", dict(x=lambda x: x[:, :0]), "x must be one token per sequence, [N, D]"),
    "convolution residual": ("causal_conv1d_update", dict(residual=True), "residual must be a tensor; got 'bool'"),
    "convolution weight": ("causal_conv1d_update", dict(weight=7), "weight must have shape [D, W]; got 7"),
    "state length": ("causal_conv1d_update_states", dict(state_len=None), "state_len must be a whole number from 1"),
    "states without offsets": ("causal_conv1d_update_states", dict(cu_seqlens=lambda cu: cu.to("meta")),
                               "cu_seqlens"),
    "gate of a number": ("gdn_chunk_options", dict(A_log=0), "A_log must be a tensor; got 'int'"),
    "bools for tokens": ("model_gdn", dict(input_ids=lambda ids: ids > 3), "input_ids must be integers [B, T]"),
    "bytes for tokens": ("model_rwkv7", dict(input_ids=lambda ids: ids.to(torch.uint8)), "int64 or int32"),
    "complex labels": ("model_rwkv7", dict(labels=lambda ids: ids.to(torch.complex64)), "labels must be integers"),
    "labels without values": ("model_gdn", dict(labels=lambda ids: ids.to("meta")), "labels must have values"),
    "rows without values": ("Cache.select", dict(rows=lambda rows: rows.to("meta")), "rows must have values"),
    "splits without values": ("get_max_num_splits", dict(cu_seqlens=lambda cu: cu.to("meta")),
                              "cu_seqlens must have values"),
    "no number of chunks": ("prepare_chunk_indices_static", dict(nt_max=None), "nt_max must be a whole number from 0"),
    "split size": ("prepare_split_cu_seqlens", dict(split_size="text"), "split_size must be a whole number from 1"),
}  # fmt: skip


@cases(what=list(FOUND))
def test_it_is_refused_by_name(what):
    name, changes, words = FOUND[what]
    arguments = fuzz.SUBJECTS[name].arguments()
    for key, change in changes.items():
        arguments[key] = change(arguments[key]) if callable(change) else change
    assert fuzz.judge(name, arguments) == "refused"
    with raises(fuzz.ERRORS, words):
        fuzz.SUBJECTS[name].make(torch.float32)(**arguments)


@cases(name=["model_gdn", "model_rwkv7"], shape=[(0, 5), (2, 0)])
def test_no_tokens_at_all_have_a_loss_too(name, shape):
    ids = torch.zeros(*shape, dtype=LONG)
    loss, logits = fuzz.SUBJECTS[name].make(torch.float32)(ids, ids, ids)
    assert logits.shape[:2] == shape and loss.isnan(), "the mean of nothing, as in torch"


@cases(content=[b"\0", b"\0" * 4096, b"x", b"SQLite format 2\0"])
def test_a_state_file_of_nothing_is_no_new_one(content, tmp_path):
    (tmp_path / FILE).write_bytes(content)
    with raises(RunError, "must be an intact state folder", "the file is not a database"):
        Store(tmp_path, {"model": "m"})
    assert (tmp_path / FILE).read_bytes() == content


@cases(old=[b"id", b"s3", b"busy"], new=[b"\xff\0", b"\0", b"\0s"])
def test_bytes_that_no_encoding_explains_name_the_table(old, new, tmp_path):
    path = KINDS["CSV table"].write(tmp_path, 0)
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(DataError, match=r"x.csv: file must be text; got 'a byte of zero'"):
        KINDS["CSV table"].read(path)


@cases(old=[b"id", b"s3", b"busy"])
def test_text_of_another_encoding_than_is_said_names_the_table(old, tmp_path):
    path = KINDS["CSV table"].write(tmp_path, 0)
    path.write_bytes(path.read_bytes().replace(old, b"\xff\xfe"))
    config = TableDataConfig(train_path=str(path), sequence="id", features=["a", "b"], label="kind", encoding="utf-8")
    with pytest.raises(DataError, match=r"x.csv: cannot be read as csv: 'utf-8' codec.*data.encoding"):
        load_table(config)


@cases(old=[b"s3", b"busy"])
def test_text_of_another_encoding_is_read_and_names_the_table(old, tmp_path, caplog):
    path = KINDS["CSV table"].write(tmp_path, 0)
    expected = KINDS["CSV table"].read(path)
    path.write_bytes(path.read_bytes().replace(old, b"\xff\xfe"))
    found = KINDS["CSV table"].read(path)
    assert found == [(x, "\xff\xfe" if kind.encode() == old else kind) for x, kind in expected]
    assert "x.csv is not UTF-8 and was read as cp1252; set data.encoding" in caplog.text


def test_text_of_another_encoding_in_parquet_names_file_and_column(tmp_path):
    path = KINDS["Parquet table"].write(tmp_path, 0)
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    wrong = pa.array([b"s\xb1"] * len(table), pa.binary()).cast(pa.string(), safe=False)
    pq.write_table(table.set_column(0, "id", wrong), path)
    with raises(DataError, "x.parquet: column 'id' must be UTF-8; got b's\\xb1'"):
        KINDS["Parquet table"].read(path)


@cases(op=list(OPS), shape=[(0, 5), (0, 70), (2, 0)])
def test_ops_go_backward_through_no_tokens_at_all(op, shape):
    given = {name: t.requires_grad_() for name, t in OPS[op].inputs(*shape).items()}
    state = op_state(op, shape[0]).requires_grad_()
    o, final = OPS[op](given, state)
    (o.sum() + final.sum()).backward()
    assert torch.equal(state.grad, torch.ones_like(state))
    assert all(t.grad is None or not t.grad.numel() for t in given.values())
