"""The input pipeline: raw data in any form and any order of columns give what was trained on, or a named refusal."""

import json

import pytest
import torch

from encoders import InputError, InputPipeline, InputSchema, build_encoder, load_encoder
from encoders.encoding import batches_of_like_length
from encoders.files import seal_manifest
from encoders.io import read_encoder
from encoders.raw import read_sequences
from encoders.saving import FORMAT
from encoders.scaling import fill_forward, own_scale
from encoders.schema import Column
from myfla.testing import assert_close, cases, raises
from myfla.utils.errors import CheckpointError
from small_encoders import small

D = torch.float64
NAN, INF = float("nan"), float("inf")
SCHEMA = InputSchema((Column("a", "double"), Column("b", "double"), Column("c", "int64")), time=Column("t", "ms"),
                     left_out=(Column("note", "string", "text"),), roles=(("label", "y"), ("sequence", "id")))
SETTINGS = [{}, dict(missing="mean"), dict(missing="forward"), dict(own_scale=True),
            dict(own_scale=True, missing="forward"), dict(standardize=False)]


def sequences(missing=False, lengths=(5, 9, 1, 4)):
    scale, shift = torch.tensor([1.0, 5.0, 1e-3]), torch.tensor([0.0, 1e6, 3.0])
    found = [torch.randn(n, 3, dtype=D) * scale + shift for n in lengths]
    if missing:
        found[0][0, 1] = found[1][3, 0] = found[1][8, 2] = NAN
    return found


def loop(x, pipeline):
    """One sequence, channel by channel and step by step."""
    x = [[float(v) for v in row] for row in x]
    columns = list(map(list, zip(*x)))
    if pipeline.own_scale:
        more = []
        for column in columns:
            known = [v for v in column if v == v]
            mean = sum(known) / len(known) if known else NAN
            std = (sum((v - mean) ** 2 for v in known) / len(known)) ** 0.5 if known else NAN
            usable = std if std > 1e-12 * abs(mean) else 1.0
            column[:] = [(v - mean) / usable for v in column]
            more.append([torch.log10(torch.tensor(std + 1e-6, dtype=D)).item() / 3] * len(column))
        columns += more
    for column, mean, std in zip(columns, pipeline.mean, pipeline.std):
        if pipeline.missing == "forward" and any(v == v for v in column):
            first = next(v for v in column if v == v)
            for i, v in enumerate(column):
                column[i] = v if v == v else (column[i - 1] if i else first)
        column[:] = [(v - mean) / std for v in column]
        if pipeline.missing != "error":
            column[:] = [v if v == v else 0.0 for v in column]
    return torch.tensor(list(zip(*columns)), dtype=D)


def saved(folder, settings, data, **changes):
    """An encoder as a run leaves it, read again."""
    pipeline = InputPipeline.fit(data, SCHEMA, **settings)
    encoder = small("gated_deltanet", D, input_size=pipeline.width, **changes)
    encoder.save(folder, pipeline)
    return encoder, load_encoder(folder)


@cases(settings=SETTINGS)
def test_values_equal_a_loop_over_steps(settings):
    data = sequences(settings.get("missing", "error") != "error")
    pipeline = InputPipeline.fit(data, SCHEMA, **settings)
    for x in data:
        got = pipeline.transform(x)
        assert got.dtype is torch.float32
        assert_close(got.double(), loop(x, pipeline), rms=1e-6)


def test_scales_are_measured_over_all_steps_missing_values_left_out():
    data = sequences(missing=True)
    pipeline, joined = InputPipeline.fit(data, missing="mean"), torch.cat(data)
    for i in range(3):
        known = joined[:, i][~joined[:, i].isnan()]
        assert pipeline.mean[i] == pytest.approx(float(known.mean()), rel=1e-12)
        assert pipeline.std[i] == pytest.approx(float(known.std(unbiased=False)), rel=1e-9)


def test_small_changes_of_large_numbers_survive():
    """Float32 has 128 between two neighbours here."""
    x = 1.7e9 + torch.tensor([[0.0], [1.0], [2.0], [3.0]], dtype=D)
    pipeline = InputPipeline.fit([x])
    assert_close(pipeline.transform(x), (x - 1.7e9 - 1.5).float() / 1.25**0.5, rms=1e-6)
    back = pipeline.untransform(pipeline.transform(x))
    assert_close(back - 1.7e9, x - 1.7e9, rms=1e-6)


def test_a_channel_that_never_changes_becomes_zero():
    x = torch.full((1000, 1), 0.1, dtype=D)
    assert InputPipeline.fit([x]).transform(x).abs().max() < 1e-12
    assert own_scale(x)[:, 0].abs().max() < 1e-12


def test_dense_batches_and_sequences_are_filled_alike():
    x = torch.randn(3, 2, 7, 4)
    x[torch.rand_like(x) < 0.5] = NAN
    got = fill_forward(x)
    for i in range(3):
        for j in range(2):
            assert torch.equal(got[i, j].nan_to_num(9.0), fill_forward(x[i, j]).nan_to_num(9.0))


@cases(settings=SETTINGS, seed=[0])
def test_it_comes_back_bit_for_bit_from_json(settings, seed):
    pipeline = InputPipeline.fit(sequences(), SCHEMA, classes=["no", "yes"], **settings)
    assert InputPipeline.from_facts(json.loads(json.dumps(pipeline.facts()))) == pipeline
    tokens = InputPipeline.tokens(9, targets=["x"])
    assert InputPipeline.from_facts(json.loads(json.dumps(tokens.facts()))) == tokens and tokens.width is None


@cases(settings=SETTINGS, direction=["causal", "bidirectional"])
def test_a_loaded_encoder_takes_raw_data_in_every_form(tmp_path, settings, direction):
    data = sequences(settings.get("missing", "error") != "error")
    encoder, again = saved(tmp_path, settings, data, direction=direction)
    pipeline = again.pipeline
    with torch.no_grad():
        want = torch.stack([encoder(pipeline.transform(x).double()[None]).embedding[0] for x in data])
        shuffled = [{"c": x[:, 2].tolist(), "t": [0] * len(x), "b": x[:, 1].numpy(), "a": x[:, 0]} for x in data]
        lists = [[[None if v != v else v for v in row] for row in x.tolist()] for x in data]
        forms = [data, [x.numpy() for x in data], lists, shuffled, [x.flip(0).numpy()[::-1] for x in data]]
        for form in forms:
            for got in (again.encode(form), again.encode(form, batch_tokens=1), again(form).embedding):
                assert_close(got, want, rms=1e-12)
            assert_close(again.encode(form[1]), want[1:2], rms=1e-12)
            assert_close(again(form[1]).embedding, want[1:2], rms=1e-12)
        padded = torch.nn.utils.rnn.pad_sequence(data, batch_first=True, padding_value=NAN)
        packed, offsets = torch.cat(data)[None], torch.tensor([0, 5, 14, 15, 19])
        for call in (dict(x=padded, lengths=[5, 9, 1, 4]), dict(x=packed, cu_seqlens=offsets)):
            assert_close(again(**call).embedding, want, rms=1e-12)
        for rows, x in zip(again.encode(data, per_step=True), data):
            assert_close(rows, encoder(pipeline.transform(x).double()[None]).hidden[0], rms=1e-12)


def test_one_channel_needs_no_inner_lists(tmp_path):
    pipeline = InputPipeline.fit([torch.randn(9, 1)])
    read = lambda x: [part.flatten().tolist() for part in read_sequences(pipeline, x)]  # noqa: E731
    assert read([1.0, 2.0]) == read(torch.tensor([1.0, 2.0])) == read([[1.0], [2.0]]) == [[1.0, 2.0]]
    assert read([[1.0, 2.0], [3.0]]) == read([torch.tensor([1.0, 2.0]), torch.tensor([3.0])]) == [[1.0, 2.0], [3.0]]
    assert read([[[1.0], [2.0]], [[3.0]]]) == [[1.0, 2.0], [3.0]]


def test_token_ids_are_read_as_they_are(tmp_path):
    encoder = small("gated_deltanet", torch.float32, vocab_size=7)
    encoder.save(tmp_path, InputPipeline.tokens(7))
    again, ids = load_encoder(tmp_path), [[1, 2, 3], [6]]
    with torch.no_grad():
        want = torch.cat([encoder(torch.tensor([row])).embedding for row in ids])
    assert_close(again.encode(ids), want, rms=2e-6)
    assert_close(again(torch.tensor([[1, 2, 3]])).embedding.detach(), want[:1], rms=2e-6)
    with raises(InputError, "x must be token ids, whole numbers; got torch.float64"):
        again.encode([[0.5]])
    for kind in (torch.float32, torch.complex64, torch.bool):
        with raises(InputError, f"x must be token ids, whole numbers; got {kind}"):
            again(torch.ones(1, 3, dtype=kind))


def test_pieces_of_a_stream_equal_the_whole(tmp_path):
    _encoder, again = saved(tmp_path, dict(missing="mean"), sequences(), direction="causal")
    x = sequences(lengths=(12,))[0][None]
    x[0, 4, 1] = NAN
    with torch.no_grad():
        first = again(x[:, :5], use_cache=True)
        assert_close(again(x[:, 5:], cache=first.cache).hidden, again(x).hidden[:, 5:], rms=1e-12)


@cases(case=[
    (dict(own_scale=True), "data.own_scale=true: the scale of a sequence is known at its end"),
    (dict(missing="forward"), "must be without missing values in pieces of sequences"),
])
def test_pieces_that_would_need_the_whole_are_refused(tmp_path, case):
    settings, reason = case
    _, again = saved(tmp_path, settings, sequences(), direction="causal")
    x = sequences(lengths=(4,))[0][None]
    x[0, 2, 0] = NAN if settings.get("missing") else 1.0
    with raises(InputError, reason):
        again(x, use_cache=True)


@cases(case=[
    (["c", "b", "a"], [2, 1, 0]),
    (["note", "a", "y", "b", "id", "c", "t"], [1, 3, 5]),
    (["", "a", "b", "c"], [1, 2, 3]),
    (["Unnamed: 0", "a", "b", "c"], [1, 2, 3]),
    (["a", "b"], "must be the model's 3 features: a, b, c; got no 'c'; add them, or rename the columns"),
    (["a", "b", "c", "d"], "got unknown 'd'; skip what is not a feature with job.ignore=[d]"),
    (["a", "b", "cc"], "got no 'c', and unknown 'cc'"),
    (["alpha", "b", "c", "alphas"], "got no 'a', and unknown 'alpha', 'alphas'; rename them, or skip what is not a"),
    (["a", "a", "b", "c"], "must have different names; got 'a' twice; rename one of them"),
])
def test_columns_are_found_by_name(case):
    names, want = case
    if isinstance(want, list):
        assert SCHEMA.match(names, "my.csv", option="job.ignore") == want
    else:
        with raises(InputError, "my.csv: columns", want):
            SCHEMA.match(names, "my.csv", option="job.ignore")
    assert SCHEMA.match([*names, "d"], "my.csv", ["d"]) == want if isinstance(want, list) else True


def test_a_near_name_is_suggested():
    schema = InputSchema((Column("acc_x"), Column("acc_y")))
    with raises(InputError, "got no 'acc_y', and unknown 'Acc_y'; 'acc_y': did you mean 'Acc_y'?"):
        schema.match(["acc_x", "Acc_y"], "my.csv")


def test_channels_without_names_go_by_position_or_number():
    schema = InputSchema.unnamed(2)
    assert schema.match(["u", "v"], "x") == [0, 1] and schema.match(["channel_2", "channel_1"], "x") == [1, 0]
    with raises(InputError, "x: columns must be 2, as the model reads; got 3: u, v, w; skip", "ignore=[...]"):
        schema.match(["u", "v", "w"], "x")
    assert schema.match(["u", "v", "w"], "x", ["v"]) == [0, 2]


@cases(case=[
    (torch.zeros(4, 2), "must have shape [T, 3]: 3 features: a, b, c; time: t (ms); left out: note (text); got [4, 2]"),
    (torch.zeros(0, 3), "must have at least one step; got none"),
    ([[["1", "2", "x"]]], "must be numbers"),
    ("text", "must be a sequence [T, 3] or a list of such; got 0 dimensions"),
    ([], "must be a sequence [T, 3] or a list of such"),
    ([torch.tensor([[1.0, 2.0, NAN]])], "must be finite, as in training; got nan at step 0, 'c'; train with data.mis"),
    ([torch.zeros(1, 3), torch.tensor([[1.0, INF, 0.0]])], "sequence 1 must be finite", "got inf at step 0, 'b'"),
    ([{"a": [1.0], "b": [1.0, 2.0], "c": [1.0]}], "must have columns [T] of one length"),
    ([{"a": [1.0], "b": [1.0], "c": [1.0], "d": [1.0]}], "unknown 'd'"),
    (torch.zeros(1, 4, 2), "must have 3 channels"),
    (torch.full((1, 4, 3), NAN), "must be finite, as in training; got nan at step 0, 'a'"),
    (torch.zeros(1, 4, 3, dtype=torch.complex64), "x must be real numbers; got torch.complex64; give real and"),
    ([torch.zeros(4, 3, dtype=torch.complex128)], "x must be real numbers; got torch.complex128"),
    (torch.zeros(1, 4, 3, device="meta"), "x must hold data, on the encoder's device cpu; got a tensor on meta"),
    ([torch.zeros(1, 3), torch.zeros(4, 3, device="meta")], "sequence 1 must hold data; got a tensor on the device"),
])
def test_data_that_do_not_fit_are_named(tmp_path, case):
    value, *reasons = case
    _, again = saved(tmp_path, {}, sequences())
    with raises(InputError, *reasons):
        again(value)


def test_lists_bring_their_own_lengths(tmp_path):
    _, again = saved(tmp_path, {}, sequences())
    with raises(InputError, "x must be one tensor of a batch where lengths, attention_mask or cu_seqlens are given"):
        again(sequences(), lengths=[5, 9, 1, 4])


@cases(change=[("mean", [1.0]), ("std", [1.0, 0.0, 1.0]), ("std", [1.0, NAN, 1.0]), ("missing", "guess"),
               ("own_scale", 1), ("classes", [1]), ("schema", None), ("vocab_size", 3), ("mean", "abc"),
               ("schema", {"features": [["a"]]}), ("own_scale", True), ("mean", None)])
def test_a_manifest_with_another_pipeline_is_refused(tmp_path, change):
    saved(tmp_path, {}, sequences())
    path = tmp_path / "encoder.json"
    manifest = json.loads(path.read_text())
    manifest.pop("sha256")
    manifest["pipeline"][change[0]] = change[1]
    path.write_bytes(seal_manifest(manifest))
    with raises(CheckpointError, "encoder.json must hold"):
        load_encoder(tmp_path)


def test_a_run_from_before_pipelines_is_refused_and_an_encoder_alone_is_not(tmp_path):
    small("gated_deltanet", torch.float32).save(tmp_path)
    path = tmp_path / "encoder.json"
    manifest = json.loads(path.read_text())
    for key in ("sha256", "pipeline"):
        manifest.pop(key)
    path.write_bytes(seal_manifest({**manifest, "format": FORMAT, "format_version": 1}))
    assert read_encoder(tmp_path)[1] is None and load_encoder(tmp_path).pipeline is None
    (tmp_path / "task.safetensors").write_bytes(b"")
    with raises(CheckpointError, "must hold the input pipeline of its run; got none, and task.safetensors beside it; "
                "the run was trained before runs kept their columns and scales; train it again"):
        load_encoder(tmp_path)


def test_an_encoder_without_a_pipeline_encodes_data_as_they_are():
    encoder = build_encoder({"name": "gated_deltanet", "input_size": 2}).eval()
    x = torch.randn(5, 2)
    with torch.no_grad():
        assert torch.equal(encoder.encode([x.tolist()]), encoder(x[None]).embedding)
    assert encoder.encode([x]).requires_grad is False


def test_batches_hold_every_place_once_below_their_tokens():
    lengths = torch.randint(1, 40, (50,)).tolist()
    found = list(batches_of_like_length(lengths, 64))
    assert sorted(place for batch in found for place in batch) == list(range(50))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 64 for batch in found)
