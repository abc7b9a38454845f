"""Raw bytes for every reader, and odd values for every field of every config: read, or refused with a clear error."""

import math
import re

import pytest
from hypothesis import strategies as st

from app.streaming.lines import Line
from app.streaming.rows import Reader, csv_reader, json_reader
from cfg.app import register_configs
from cfg.encoder import ENCODER_CONFIGS
from cfg.paths import conf_dir
from cfg.validation import ConfigError
from encoders import build_encoder, encoder_config
from fuzz_run import MANY, SEED, report, spoilt, tried
from myfla.testing import cases, raises
from readable_files import KINDS

FEW = 60


def line_judge(kind):
    """``(a good line, judge)``: any line becomes a row of finite numbers or is complained of; none stops the reader."""
    said = []
    if kind == "JSON line":
        parse, whole = json_reader("session", None), b'{"session": "a", "features": [0.5, -1, 2e3]}'
    else:
        parse, whole = csv_reader("session,x,y,z", "session", None, 3), b"a,0.5,-1,2e3"
    reader = Reader(parse, 3, lambda number, reason: said.append(reason))

    def judge(data):
        data, before = data.replace(b"\n", b""), len(said)
        got = reader([Line(data, len(data) + 1)], 1)
        assert len(got.sessions) + len(said) - before == (1 if data.strip() else 0)
        assert all(math.isfinite(x) for x in got.features.flatten().tolist())
        return "read" if len(got.sessions) else "refused"

    return whole, judge


def file_judge(kind, folder):
    """``(a good file, judge)``: what is read of a spoilt sealed file is what was written; refusals name the file."""
    path = KINDS[kind].write(folder, 0)
    whole, want = path.read_bytes(), KINDS[kind].read(path)

    def judge(data):
        path.write_bytes(data)
        for log in folder.glob(path.name + "-*"):  # SQLite's, of the file before
            log.unlink()
        try:
            got = KINDS[kind].read(path)
        except ValueError as problem:
            assert path.name in str(problem) or str(folder) in str(problem), problem
            return "refused"
        if kind == "stream state" and not data:
            return "new"
        assert got == want or not KINDS[kind].sealed
        return "read"

    return whole, judge


LINES = ("JSON line", "CSV line")


def counted(kind, folder, examples, start):
    whole, judge = line_judge(kind) if kind in LINES else file_judge(kind, folder)
    assert judge(whole) == "read"
    return tried(spoilt(whole), judge, examples, start)


@cases(kind=[*LINES, *KINDS])
def test_spoilt_bytes_are_refused_or_mean_something(kind, tmp_path):
    quick = 4 if kind in (*LINES, ".ts file") else 1
    assert counted(kind, tmp_path, quick * FEW, 1)["refused"] or kind == "text"  # any bytes are text


@pytest.mark.slow
@cases(kind=[*LINES, *KINDS])
def test_many_spoilt_bytes_are_refused_or_mean_something(kind, tmp_path):
    report(kind, counted(kind, tmp_path, 5 * MANY // 2, SEED))  # files take less time than calls


# ---- configs ---------------------------------------------------------------------------------------------------------

ODD = (0, -1, float("nan"), float("inf"), -float("inf"), 1 << 80, 1e300, "text", "", None, True, [], {}, (1,),
       object(), b"x")


def schemas():
    """``(group, name, config class)`` of every preset."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    register_configs()
    store = ConfigStore.instance().repo
    for group, entries in store.items():
        if isinstance(entries, dict) and "schema" in entries:
            for file, node in entries["schema"].items():
                yield group, file.rsplit(".", 1)[0], OmegaConf.get_type(node.node)


@cases(schema=list(schemas()))
def test_every_field_takes_odd_values_or_names_itself(schema):
    group, _, config_class = schema
    tried = refused = 0
    for name in config_class.__dataclass_fields__:
        for value in ODD:
            tried += 1
            needed = {"input_size": 3} if group == "encoder" and name != "input_size" else {}
            try:
                config_class(**{**needed, name: value})
            except ConfigError as problem:
                refused += 1
                assert str(problem).split(" ")[0].split(".")[0].strip(":;") == group, f"{name}={value!r}: {problem}"
    assert refused > tried // 3


def judge_config(group, config_class, fields):
    """Several odd fields at once: taken, or refused by the name of the group; what an encoder takes can be built."""
    needed = {"input_size": 3} if group == "encoder" and "vocab_size" not in fields else {}
    needed.update((name, "x") for name, field in config_class.__dataclass_fields__.items()
                  if field.default == "???" and name != "name")
    try:
        config = config_class(**{**needed, **fields})
    except ConfigError as problem:
        assert str(problem).split(" ")[0].split(".")[0].strip(":;") == group, f"{fields}: {problem}"
        return "refused"
    if group == "encoder":
        try:
            build_encoder(config, device="meta")
        except (ConfigError, ValueError) as problem:
            assert re.match(r"[\w.]+( |: )", str(problem)), f"{fields}: {problem}"
            return "not built"
    return "taken"


def near(default):
    """Values that a field may well take, and some beside them."""
    if isinstance(default, bool):
        return [True, False]
    if isinstance(default, (int, float)):
        return [default, default + 1, default * 2, default / 2, 1, 2, 8, 0.5]
    return [default, 1, 3, "mean", "last", "conv", "patch", "bidirectional", "file", ["a"]]


@st.composite
def odd_fields(draw, config_class):
    """Up to four fields: mostly near their defaults, now and then odd."""
    fields = config_class.__dataclass_fields__
    chosen = draw(st.lists(st.sampled_from(sorted(fields)), max_size=4, unique=True))
    return {name: draw(st.sampled_from(ODD if draw(st.integers(0, 3)) == 0 else near(fields[name].default)))
            for name in chosen if name != "name"}


@pytest.mark.slow
@cases(schema=list(schemas()))
def test_many_odd_configs_are_taken_or_refused_by_name(schema):
    group, name, config_class = schema
    counts = tried(odd_fields(config_class), lambda fields: judge_config(group, config_class, fields), MANY, SEED)
    report(f"config {group}/{name}", counts)


@cases(name=list(ENCODER_CONFIGS))
def test_a_few_odd_configs_are_taken_or_refused_by_name(name):
    kind = ENCODER_CONFIGS[name]
    assert tried(odd_fields(kind), lambda fields: judge_config("encoder", kind, fields), FEW, 1)["refused"]


@cases(name=list(ENCODER_CONFIGS))
def test_a_misspelt_field_names_the_nearest(name):
    for field in ENCODER_CONFIGS[name].__dataclass_fields__:
        if len(field) > 5 and field != "name":
            with raises(ConfigError, f"encoder.{field[:-2]}{field[-1]}x"):
                encoder_config({"name": name, "input_size": 3, f"{field[:-2]}{field[-1]}x": 1})


def test_the_schemas_are_those_of_the_presets():
    groups = {group for group, _, _ in schemas()}
    assert {"encoder", "data", "job", "trainer"} <= groups
    assert all((conf_dir() / group).is_dir() for group in groups)
