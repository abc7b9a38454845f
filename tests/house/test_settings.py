"""Every setting has a meaning, a default and a rule, which the page and the help show."""

import pytest

from app.settings_help import group_help
from app.settings_page import all_settings, settings_page
from app.settings_table import meanings, settings_of, written
from app.sweep import register_sweep_table
from app_runs import ROOT
from cfg.app import GROUPS, register_configs
from cfg.encoder import ENCODER_CONFIGS
from cfg.validation import ConfigError, rules_of
from myfla.testing import cases

SETTINGS = all_settings()


def test_the_page_is_made_from_the_classes_of_today():
    path = ROOT / "docs" / "settings.md"
    assert path.read_text(encoding="utf-8") == settings_page(), "run make settings, and read the diff"


def test_no_setting_lacks_a_meaning_or_a_rule():
    assert len(SETTINGS) > 400
    assert not [key for key, setting in SETTINGS.items() if not setting.meaning or not setting.rule]


def test_every_class_and_every_key_of_it_is_on_the_page():
    page = settings_page()
    for group, classes in {**GROUPS, "encoder": ENCODER_CONFIGS}.items():
        for name, kind in classes.items():
            assert f"### {group}={name}\n" in page or len(settings_of(kind)) <= 9 or len(classes) == 1, (group, name)
            for setting in settings_of(kind):
                assert f"| `{group}.{setting.name}` |" in page, (group, name, setting.name)


def test_rules_are_those_that_are_checked():
    """An error about a setting has the words of its rule."""
    for group, classes in {**GROUPS, "encoder": ENCODER_CONFIGS}.items():
        for kind in classes.values():
            for name, words in rules_of(kind).items():
                if words.startswith(("an integer", "a finite number", "true or false", "one of")):
                    needed = {s.name: "x" for s in settings_of(kind) if s.default == "???" and s.name != "name"}
                    with pytest.raises(ConfigError) as caught:
                        kind(**{**needed, name: object()})
                    assert str(caught.value).startswith(f"{group}.{name} must be {words}; got "), caught.value


@cases(asked=["trainer", "data=table", "encoder=rwkv7", "job=stream"])
def test_help_says_what_the_page_says(asked):
    register_configs()
    register_sweep_table()
    group, _, option = asked.partition("=")
    kind = {**GROUPS, "encoder": ENCODER_CONFIGS}[group].get(option) or GROUPS[group]["lightning"]
    shown = " ".join(group_help(["--help", asked]).split())
    for setting in settings_of(kind):
        assert f"{group}.{setting.name}=" in shown
        assert f"{setting.meaning} Must be {setting.rule}." in shown, setting.name


def test_units_and_bases_are_read_from_docstrings():
    class Base:
        """A base.

        Args:
            a: of the base,
                in two lines.
            b, c (seconds): together.
        """

    class Own(Base):
        """Its own.

        Args:
            c (steps): anew, see ``a``.

        Raises:
            ValueError: never.
        """

    assert meanings(Own) == {"a": ("", "Of the base, in two lines."), "b": ("seconds", "Together."),
                             "c": ("steps", "Anew, see a.")}
    assert written({"a": [1, None]}) == "{a: [1,null]}"
