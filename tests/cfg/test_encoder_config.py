"""Every field of every encoder config refuses what breaks its rule, by its key."""

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import pytest

from cfg.encoder import (
    DIRECTIONS,
    ENCODER_CONFIGS,
    POOLINGS,
    EncoderConfig,
    GatedDeltaNetEncoderConfig,
    RWKV7EncoderConfig,
)
from cfg.validation import ConfigError
from myfla.testing import cases, raises

ROOT = Path(__file__).resolve().parents[2]
HUGE = 10**40


def fields_of(*kinds):
    """Every (config class, field) whose annotation mentions one of the kinds."""
    return [
        (cls, field.name)
        for cls in (EncoderConfig, *ENCODER_CONFIGS.values())
        for field in dataclasses.fields(cls)
        if any(kind in str(field.type) for kind in kinds)
    ]


def make(cls, **changes):
    return cls(**{"name": "x", "input_size": 3, **changes} if cls is EncoderConfig else {"input_size": 3, **changes})


BOUNDS = ("clamp_min", "lower_bound")  # negative, or null for none
SIZES = [field for field in fields_of("float") if field[1] not in BOUNDS]


@cases(field=[field for field in fields_of("float") if field[1] in BOUNDS], value=[math.nan, -math.inf, 0.0, 1, True])
def test_a_bound_of_log_decays_is_negative(field, value):
    cls, name = field
    with raises(ConfigError, f"encoder.{name} must be a finite number from -1000 and below 0"):
        make(cls, **{name: value})
    for fine in (None, -1, -0.5):
        assert getattr(make(cls, **{name: fine}), name) == fine


def test_a_safe_gate_needs_a_bound():
    with raises(ConfigError, "encoder.lower_bound must be set with encoder.safe_gate=true; got None; use -5.0"):
        make(ENCODER_CONFIGS["kda"], safe_gate=True)


@cases(field=fields_of("int"), value=[0, -1, 1.0, 1.5, math.nan, math.inf, HUGE, True, "4", [4], "???"])
def test_a_bad_integer_is_refused_by_its_key(field, value):
    cls, name = field
    with raises(ConfigError, f"encoder.{name} must be an integer from 1 to ", f"; got {value!r}"[:40]):
        make(cls, **{name: value})


@cases(field=SIZES, value=[math.nan, math.inf, -math.inf, HUGE, -1, True, "0.5", None, [0.5]])
def test_a_bad_number_is_refused_by_its_key(field, value):
    cls, name = field
    if value is None and name == "drop_path":  # to be chosen from the training data
        assert make(cls, drop_path=None).drop_path is None
        return
    with raises(ConfigError, f"encoder.{name} must be a finite number ", f"; got {value!r}"[:40]):
        make(cls, **{name: value})


@cases(field=[f for f in SIZES if f[1] not in ("dropout", "drop_path")])
def test_zero_is_no_size_and_no_epsilon(field):
    cls, name = field
    with raises(ConfigError, f"encoder.{name} must be a finite number above 0 to "):
        make(cls, **{name: 0.0})


@cases(field=fields_of("bool"), value=[0, 1, "true", None, math.nan, [True]])
def test_a_bad_flag_is_refused_by_its_key(field, value):
    cls, name = field
    with raises(ConfigError, f"encoder.{name} must be true or false; got {value!r}"):
        make(cls, **{name: value})


WORDS = [field for field in fields_of("str") if field[1] not in ("name", "pretrained", "feature_map")]


@cases(field=WORDS, value=["", "caussal", "CHUNK", 1, None, math.nan, ["mean"]])
def test_a_bad_word_is_refused_by_its_key(field, value):
    cls, name = field
    with raises(ConfigError, f"encoder.{name} must be one of ", f"; got {value!r}"):
        make(cls, **{name: value})


@cases(field=[f for f in fields_of("str") if f[1] == "pretrained"], value=["", "  ", 1, True, math.nan, ["a"]])
def test_a_bad_folder_is_refused_by_its_key(field, value):
    cls, name = field
    with raises(ConfigError, f"encoder.{name} must be a non-empty string or null; got {value!r}"):
        make(cls, **{name: value})


@cases(value=["", "  ", "???", 3, None])
def test_a_bad_name_is_refused(value):
    with raises(ConfigError, f"encoder.name must be a non-empty string; got {value!r}"):
        EncoderConfig(name=value)


@cases(cls=list(ENCODER_CONFIGS.values()))
def test_a_config_is_not_called_by_the_name_of_another(cls):
    rule = f"encoder.name must be {cls().name!r} in a {cls.__name__}; got 'other'"
    with raises(ConfigError, f"{rule}; another encoder has another config: encoder=other"):
        cls(name="other")


def test_a_near_miss_is_pointed_at():
    message = "encoder.direction must be one of causal, bidirectional; got 'caussal'; did you mean 'causal'?"
    with raises(ConfigError, message):
        make(EncoderConfig, direction="caussal")


def test_dropout_of_one_is_refused():
    with raises(ConfigError, "encoder.dropout must be a finite number from 0 and below 1; got 1.0"):
        make(EncoderConfig, dropout=1.0)


def test_features_and_token_ids_exclude_each_other():
    with raises(ConfigError, "encoder.vocab_size must be null when encoder.input_size=3 is set; got 10; an encoder"):
        EncoderConfig(name="x", input_size=3, vocab_size=10)


def test_a_fractional_value_head_is_refused():
    rule = "encoder.expand_v must make a whole number with encoder.head_dim=16; got 1.3; the product is 20.8"
    with raises(ConfigError, rule):
        GatedDeltaNetEncoderConfig(head_dim=16, expand_v=1.3)


@cases(expand_v=[0.5, 1, 1.25, 1.5, 2, 64])
def test_a_whole_value_head_is_fine(expand_v):
    assert GatedDeltaNetEncoderConfig(head_dim=16, expand_v=expand_v).expand_v == expand_v


@cases(num_v_heads=[1, 3, 5])
def test_value_heads_come_in_multiples_of_heads(num_v_heads):
    rule = "encoder.num_v_heads must be a multiple of encoder.num_heads=2"
    with raises(ConfigError, f"{rule}; got {num_v_heads}; use 2, 4, ... or null"):
        GatedDeltaNetEncoderConfig(num_heads=2, num_v_heads=num_v_heads)


def test_rwkv7_heads_divide_the_width():
    with raises(ConfigError, "encoder.head_dim must divide encoder.hidden_size=64; got 24; or null"):
        RWKV7EncoderConfig(head_dim=24)
    with raises(ConfigError, "encoder.num_heads must divide encoder.hidden_size=64; got 3; or null"):
        RWKV7EncoderConfig(num_heads=3)
    rule = "encoder.num_heads must make encoder.hidden_size=64 with encoder.head_dim=16; got 2; use 4 or null"
    with raises(ConfigError, rule):
        RWKV7EncoderConfig(num_heads=2, head_dim=16)
    with raises(ConfigError, "encoder.value_dim must be a multiple of the number of heads, 4; got 30"):
        RWKV7EncoderConfig(num_heads=4, value_dim=30)


@cases(hidden_size=[1, 2, 7, 16, 50, 64, 96, 97, 100, 128, 192, 65536])
def test_rwkv7_finds_heads_for_every_width(hidden_size):
    config = RWKV7EncoderConfig(hidden_size=hidden_size)
    assert config.resolved_head_dim * config.resolved_num_heads == hidden_size
    assert config.resolved_head_dim <= 64
    better = [d for d in range(config.resolved_head_dim + 1, 65) if hidden_size % d == 0]
    assert not better, f"{better} would divide {hidden_size} too"


@cases(given=[dict(num_heads=4), dict(head_dim=16), dict(num_heads=4, head_dim=16)])
def test_rwkv7_takes_heads_in_any_of_three_ways(given):
    config = RWKV7EncoderConfig(hidden_size=64, **given)
    assert (config.resolved_num_heads, config.resolved_head_dim) == (4, 16)


def test_replacing_the_width_chooses_the_heads_again():
    wider = dataclasses.replace(RWKV7EncoderConfig(hidden_size=64), hidden_size=96)
    assert wider.resolved_head_dim == 48


@cases(cls=list(ENCODER_CONFIGS.values()), direction=DIRECTIONS, pooling=POOLINGS)
def test_what_keeps_the_rules_is_kept(cls, direction, pooling):
    config = cls(input_size=12, direction=direction, pooling=pooling, hidden_size=32, mlp_ratio=3, dropout=0)
    assert (config.direction, config.pooling, config.intermediate_size) == (direction, pooling, 96)
    assert type(config.mlp_ratio) is float and type(config.dropout) is float


def test_the_inner_width_is_never_zero():
    assert EncoderConfig(name="x", hidden_size=1, mlp_ratio=0.01).intermediate_size == 1


def test_numpy_integers_become_plain():
    numpy = pytest.importorskip("numpy")
    config = GatedDeltaNetEncoderConfig(input_size=numpy.int64(5), dropout=numpy.float32(0.5))
    assert type(config.input_size) is int and type(config.dropout) is float


def test_an_object_without_repr_is_still_refused_by_key():
    class Mute:
        def __repr__(self):
            raise RuntimeError("no")

    with raises(ConfigError, "encoder.num_layers must be an integer from 1 to 1024; got <Mute>"):
        make(EncoderConfig, num_layers=Mute())
    with raises(ConfigError, "encoder.hidden_size", "..."):
        make(EncoderConfig, hidden_size="x" * 1000)


@cases(name=list(ENCODER_CONFIGS))
def test_a_config_is_named_as_its_strategy(name):
    assert ENCODER_CONFIGS[name]().name == name


def test_importing_configs_imports_no_torch():
    code = "import sys, cfg.encoder, cfg.encoder_mapping, cfg.store, cfg.validation; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=str(ROOT / "src"), stdout=subprocess.PIPE, check=True)
    assert done.stdout.split() == [b"False"]
