"""Raw bytes for every reader, and odd values for every field of every config: read, or refused by name."""

import math
import random

import pytest

from app.data.ts import read_ts
from app.paths import conf_dir
from app.streaming.lines import Line
from app.streaming.rows import Reader, csv_reader, json_reader
from cfg.app import register_configs
from cfg.encoder import ENCODER_CONFIGS
from cfg.validation import ConfigError
from encoders import encoder_config
from myfla.testing import cases, raises
from readable_files import KINDS

FEW, MANY = 60, 5000
TS = (b"@problemName Tiny\n@timeStamps false\n@dimensions 2\n@classLabel true up down\n@data\n"
      b"0.1,0.2,0.3:5.0,5.0,5.0:up\n0.3,0.1:5.0,4.0:down\n")
PIECES = (b"", b"\0", b"\xff\xfe", b"nan", b"1e999", b"@data\n", b":", b",", b"\n", b'"', b"{", b"[" * 50, b"-1",
          b"\xe2\x82")


def spoil(data, draw):
    """Bytes with some cut, doubled, flipped or put in."""
    data = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at, kind = draw.randrange(len(data) + 1), draw.randrange(4)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            data[at:at] = draw.choice(PIECES)
        elif kind == 2:
            del data[at : at + draw.randint(1, 40)]
        else:
            data[at:at] = data[at : at + draw.randint(1, 40)]
    return bytes(data)


def try_ts(folder, count):
    path, draw, read = folder / "x.ts", random.Random(3), 0
    for _ in range(count):
        path.write_bytes(spoil(TS, draw))
        try:
            read_ts(path)
            read += 1
        except ValueError as problem:
            assert "x.ts" in str(problem)
    return read


def try_lines(kind, count):
    """Any line becomes a row of finite numbers, or is complained of; none stops the reader."""
    draw, said = random.Random(4), []
    if kind == "json":
        parse, whole = json_reader("session", None), b'{"session": "a", "features": [0.5, -1, 2e3]}'
    else:
        parse, whole = csv_reader("session,x,y,z", "session", None, 3), b"a,0.5,-1,2e3"
    reader, rows = Reader(parse, 3, lambda number, reason: said.append(reason)), 0
    for number in range(count):
        data = spoil(whole, draw).replace(b"\n", b"")
        before = len(said)
        got = reader([Line(data, len(data) + 1)], number)
        assert len(got.sessions) + len(said) - before == (1 if data.strip() else 0)
        assert all(math.isfinite(x) for x in got.features.flatten().tolist())
        rows += len(got.sessions)
    return rows


def try_file(kind, folder, count):
    """Files of `readable_files`: what is read of a spoilt sealed file is what was written."""
    path = KINDS[kind].write(folder, 0)
    data, want, draw, read = path.read_bytes(), KINDS[kind].read(path), random.Random(5), 0
    for _ in range(count):
        path.write_bytes(spoil(data, draw))
        try:
            got = KINDS[kind].read(path)
        except ValueError as problem:
            assert path.name in str(problem) or str(folder) in str(problem), problem
            continue
        read += 1
        assert got == want or not KINDS[kind].sealed
    return read


def test_spoilt_ts_files_are_read_or_refused(tmp_path):
    assert 0 < try_ts(tmp_path, 4 * FEW) < 4 * FEW


@cases(kind=["json", "csv"])
def test_no_spoilt_line_stops_a_stream(kind):
    assert 0 < try_lines(kind, 4 * FEW) < 4 * FEW


@cases(kind=[kind for kind in KINDS if kind != "stream state"])
def test_spoilt_files_are_refused_or_mean_the_same(kind, tmp_path):
    assert try_file(kind, tmp_path, FEW) < FEW


@pytest.mark.slow
@cases(kind=["ts", "json", "csv", *(kind for kind in KINDS if kind != "stream state")])
def test_many_spoilt_bytes_are_read_or_refused(kind, tmp_path):
    read = (try_ts(tmp_path, MANY) if kind == "ts" else try_lines(kind, MANY) if kind in ("json", "csv")
            else try_file(kind, tmp_path, MANY))
    print(f"fuzzed {kind}: {MANY} inputs, {read} read, {MANY - read} refused")


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
