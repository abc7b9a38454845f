"""The switch between encoders: shared settings compose for both, and a flag of the other is refused by name."""

import dataclasses
import itertools
from contextlib import contextmanager
from pathlib import Path

import pytest

from cfg.encoder import DIRECTIONS, ENCODER_CONFIGS, POOLINGS, EncoderConfig
from cfg.encoder_mapping import field_names, from_mapping, switch_encoder, to_mapping
from cfg.validation import ConfigError
from myfla.testing import cases, raises

hydra = pytest.importorskip("hydra")
from hydra.core.global_hydra import GlobalHydra  # noqa: E402
from hydra.errors import ConfigCompositionException  # noqa: E402
from omegaconf import MISSING, OmegaConf  # noqa: E402
from omegaconf.errors import OmegaConfBaseException  # noqa: E402

from cfg.hydra_versions import store_config, version_base  # noqa: E402
from cfg.store import register_encoder_config, register_encoder_configs  # noqa: E402

CONF = str(Path(__file__).resolve().parents[2] / "conf")
NAMES = list(ENCODER_CONFIGS)
NEIGHBOURS = list(zip(NAMES, [*NAMES[1:], NAMES[0]]))  # each is once the one and once the other
PAIRS = [*NEIGHBOURS, *(pair[::-1] for pair in NEIGHBOURS)]
HOW = list(zip(itertools.cycle(DIRECTIONS), POOLINGS, [24, 97, 97, 24]))
SHARED = field_names(EncoderConfig)
OWN = {name: [f for f in field_names(cls) if f not in SHARED] for name, cls in ENCODER_CONFIGS.items()}


@dataclasses.dataclass
class _Root:
    encoder: EncoderConfig = MISSING


@dataclasses.dataclass
class OtherConfig(EncoderConfig):
    name: str = "store_only"
    width: int = 3


@contextmanager
def composing():
    """Hydra over this project's presets, under a root config of the test's own."""
    register_encoder_configs()
    store_config(name="encoder_test_root", node=_Root)
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(config_dir=CONF, **version_base()):
        yield lambda *overrides: hydra.compose("encoder_test_root", overrides=list(overrides))
    GlobalHydra.instance().clear()


@cases(name=NAMES)
def test_the_preset_composes_to_a_checked_config(name):
    with composing() as compose:
        config = OmegaConf.to_object(compose(f"+encoder={name}").encoder)
    assert type(config) is ENCODER_CONFIGS[name] and config.name == name
    assert config == dataclasses.replace(config)


@cases(pair=NEIGHBOURS, how=HOW)
def test_every_shared_setting_of_one_composes_for_the_other(pair, how):
    (name, other), (direction, pooling, hidden_size) = pair, how
    shared = dict(direction=direction, pooling=pooling, hidden_size=hidden_size, num_layers=3, mlp_ratio=1.5,
                  dropout=0.25, drop_path=0.5, norm_eps=1e-6, input_size=7, state_weaving=True, stem="conv",
                  stem_stride=4, stem_kernel=5, pretrained="folder", embedding_std=0.5)
    assert {*shared, "name", "vocab_size"} == set(SHARED)
    with composing() as compose:
        words = [f"encoder.{key}={value}" for key, value in shared.items()]
        here, there = (OmegaConf.to_object(compose(f"+encoder={n}", *words).encoder) for n in pair)
    for key, value in shared.items():
        assert getattr(here, key) == getattr(there, key) == value
    switched = switch_encoder(here, ENCODER_CONFIGS[other])
    assert switched == there and switch_encoder(switched, ENCODER_CONFIGS[name]) == here


def test_flags_that_both_have_mean_the_same_for_both():
    common = {"num_heads": 4, "head_dim": 16, "mode": "fused_recurrent", "backend": "naive"}
    names = ["gated_deltanet", "rwkv7"]
    assert set(common) == set(OWN[names[0]]) & set(OWN[names[1]]) and OWN["gru"] == OWN["lstm"] == ["state_size"]
    words = [f"encoder.{flag}={value}" for flag, value in common.items()]
    with composing() as compose:
        for name in names:
            config = OmegaConf.to_object(compose(f"+encoder={name}", "encoder.hidden_size=64", *words).encoder)
            assert {flag: getattr(config, flag) for flag in common} == common


@cases(pair=PAIRS)
def test_a_flag_of_the_other_is_refused_by_name(pair):
    name, other = pair
    theirs = [flag for flag in OWN[other] if flag not in OWN[name]]
    assert theirs or set(OWN[other]) <= set(OWN[name])
    with composing() as compose:
        for flag in theirs:
            default = getattr(ENCODER_CONFIGS[other](), flag)
            word = "null" if default is None else default
            with raises(ConfigCompositionException, f"encoder.{flag}"):
                compose(f"+encoder={name}", f"encoder.{flag}={word}")
            owners = [owner for owner in NAMES if flag in OWN[owner]]
            rule = f"encoder.{flag} belongs to {' and '.join(map(repr, owners))}, not to {name!r}"
            with raises(ConfigError, rule, f"leave it out or set encoder.name to {owners[0]!r}"):
                from_mapping(ENCODER_CONFIGS[name], {flag: default})
            with raises(ConfigError, rule):
                switch_encoder(ENCODER_CONFIGS[other](), ENCODER_CONFIGS[name], **{flag: default})


@cases(pair=PAIRS)
def test_own_flags_do_not_cross_over(pair):
    name, other = pair
    changed = dict(num_heads=2, head_dim=32, mode="fused_recurrent", state_size=9)
    changed = {flag: value for flag, value in changed.items() if flag in OWN[name]}
    switched = switch_encoder(ENCODER_CONFIGS[name](**changed), ENCODER_CONFIGS[other])
    assert switched == ENCODER_CONFIGS[other]()


@cases(name=NAMES)
def test_a_misspelt_field_is_answered_with_the_nearest(name):
    with raises(ConfigError, f"encoder.hiden_size is not a field of encoder {name!r}; got 8; ",
                "did you mean 'hidden_size'?"):
        from_mapping(ENCODER_CONFIGS[name], {"hiden_size": 8})
    with raises(ConfigError, f"encoder.zzz is not a field of encoder {name!r}; got 1; known: name, input_size"):
        from_mapping(ENCODER_CONFIGS[name], {"zzz": 1})
    with composing() as compose, raises(ConfigCompositionException, "encoder.hiden_size"):
        compose(f"+encoder={name}", "encoder.hiden_size=8")


@cases(name=NAMES)
def test_mapping_there_and_back_is_the_same(name):
    config = ENCODER_CONFIGS[name](input_size=5, hidden_size=48, direction="bidirectional")
    assert from_mapping(ENCODER_CONFIGS[name], to_mapping(config)) == config


@cases(name=NAMES)
def test_an_override_of_the_wrong_type_is_refused_by_key(name):
    with composing() as compose:
        with raises(ConfigCompositionException, "encoder.num_layers"):
            compose(f"+encoder={name}", "encoder.num_layers=two")
        config = compose(f"+encoder={name}", "encoder.num_layers=0").encoder
        with pytest.raises((ConfigError, OmegaConfBaseException), match=r"encoder\.num_layers must be an integer"):
            OmegaConf.to_object(config)
        config = compose(f"+encoder={name}", "encoder.dropout=nan").encoder
        with pytest.raises((ConfigError, OmegaConfBaseException), match=r"encoder\.dropout must be a finite number"):
            OmegaConf.to_object(config)


def test_registering_twice_changes_nothing():
    register_encoder_configs()
    register_encoder_configs()
    with composing() as compose:
        assert compose("+encoder=rwkv7").encoder.name == "rwkv7"


def test_an_encoder_without_a_yaml_file_composes_from_the_store():
    register_encoder_config("store_only", OtherConfig)
    with composing() as compose:
        config = OmegaConf.to_object(compose("+encoder=store_only", "encoder.width=5").encoder)
    assert (config.name, config.width) == ("store_only", 5)


def test_presets_run_nothing():
    for path in Path(CONF, "encoder").glob("*.yaml"):
        assert "_target_" not in path.read_text(encoding="utf-8")


def test_layers_of_attention_are_named_on_the_command_line():
    with composing() as compose:
        words = ["+encoder=gated_deltanet", "encoder.num_layers=2", "encoder.attn={layers: [1], num_heads: 4}"]
        config = OmegaConf.to_object(compose(*words).encoder)
    assert config.attn["layers"] == [1] and config.attn["num_kv_heads"] == 4 and config.attn["window_size"] is None
