"""Configurations of earlier versions: renamed and removed settings."""

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from hardpatch.configuration import config
from hardpatch.configuration.upgrade import REMOVED, RENAMED, RENAMED_VALUES, hint, upgrade
from hardpatch.errors import UserError
from hardpatch.pretrain import recipes
from hardpatch.pretrain.folder import read_config


@pytest.fixture(autouse=True)
def propagate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("hardpatch"), "propagate", True)  # the command line turns it off


def nested(setting: str, value: Any) -> dict[str, Any]:
    section, name = setting.split(".")
    return {section: {name: value}}


def value_of(values: dict[str, Any], setting: str) -> Any:
    section, name = setting.split(".")
    return values[section][name]


def settings() -> set[str]:
    return {f"{section}.{name}" for section, names in config.setting_names().items() if section for name in names}


def test_new_names_exist_and_old_ones_are_gone() -> None:
    assert set(RENAMED.values()) <= settings()
    assert not settings() & {*RENAMED, *REMOVED}
    assert set(RENAMED_VALUES) <= settings()


def test_a_renamed_setting_stays_in_its_section() -> None:
    for old, new in RENAMED.items():
        assert old.split(".")[0] == new.split(".")[0]


@pytest.mark.parametrize("old", RENAMED)
def test_a_renamed_setting_is_read_and_reported_in_one_line(old: str, caplog: pytest.LogCaptureFixture) -> None:
    run = config.to_dict(config.build(recipes.read("demo")))
    section, name = old.split(".")
    value = run[section].pop(RENAMED[old].split(".")[1])
    run[section][name] = value
    with caplog.at_level(logging.INFO, "hardpatch"):
        upgraded = upgrade(run, "old/config.yaml")
    assert config.build(upgraded) == config.build(recipes.read("demo"))
    assert value_of(upgraded, RENAMED[old]) == value
    assert caplog.messages == [f"old/config.yaml was written by an earlier version: reading {old} as {RENAMED[old]}"]
    assert name in run[section]  # the argument is left as it was


@pytest.mark.parametrize(
    ("setting", "old"), [(setting, old) for setting in RENAMED_VALUES for old in RENAMED_VALUES[setting]]
)
def test_a_renamed_value_is_read_and_reported_in_one_line(
    setting: str, old: str, caplog: pytest.LogCaptureFixture
) -> None:
    new = RENAMED_VALUES[setting][old]
    with pytest.raises(UserError, match=old):
        config.build({"steps": 1, **nested(setting, old)})
    with caplog.at_level(logging.INFO, "hardpatch"):
        upgraded = upgrade({"steps": 1, **nested(setting, old)}, "old/config.yaml")
    assert value_of(config.to_dict(config.build(upgraded)), setting) == new
    assert caplog.messages == [f"old/config.yaml was written by an earlier version: reading {setting} {old} as {new}"]


@pytest.mark.parametrize("setting", REMOVED)
def test_a_removed_setting_passes_at_todays_value_only(setting: str, caplog: pytest.LogCaptureFixture) -> None:
    section, _ = setting.split(".")
    assert upgrade(nested(setting, REMOVED[setting]), "old/config.yaml") == {section: {}}
    assert not caplog.messages
    with pytest.raises(UserError) as caught:
        upgrade(nested(setting, 0.123), "old/config.yaml")
    message = str(caught.value)
    assert message.startswith(f"old/config.yaml: made with {setting} 0.123, which this version does not support")
    assert repr(REMOVED[setting]) in message
    assert "\n" not in message


@pytest.mark.parametrize("name", recipes.names())
def test_todays_configurations_are_unchanged(name: str, caplog: pytest.LogCaptureFixture) -> None:
    values = config.to_dict(config.build(recipes.read(name), ["--data.path=somewhere"]))
    with caplog.at_level(logging.INFO, "hardpatch"):
        assert upgrade(values, "config.yaml") == values
    assert not caplog.messages


def test_a_run_folder_with_all_old_names_can_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    old, changes = config.to_dict(config.build(recipes.read("demo"))), []
    for setting, names in RENAMED_VALUES.items():
        section, name = setting.split(".")
        old[section][name], new = next(iter(names.items()))
        changes.append(f"--{setting}={new}")
    for before, after in RENAMED.items():
        section, name = before.split(".")
        old[section][name] = old[section].pop(after.split(".")[1])
    for setting, value in REMOVED.items():
        section, name = setting.split(".")
        old[section][name] = value
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(old))
    with caplog.at_level(logging.INFO, "hardpatch"):
        run = read_config(tmp_path)
    assert run == config.build(recipes.read("demo"), changes)
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path / 'config.yaml'} was written by an earlier version: reading ")
    assert "optim.accumulate as optim.accumulation_steps, " in message
    assert message.count(" as ") == len(RENAMED) + len(RENAMED_VALUES)
    assert "\n" not in message


@pytest.mark.parametrize("old", [*RENAMED, *REMOVED])
@pytest.mark.parametrize("where", ["settings", "command line"])
def test_old_names_get_a_hint(old: str, where: str) -> None:
    values, arguments = (nested(old, 1), []) if where == "settings" else ({}, [f"--{old}=1"])
    with pytest.raises(UserError) as caught:
        config.build({"steps": 1, **values}, arguments)
    assert hint(old)
    assert str(caught.value).endswith(hint(old))
    assert "\n" not in str(caught.value)


def test_hints() -> None:
    assert hint("optim.accumulate") == "; it is now called 'optim.accumulation_steps'"
    assert hint("fast.teacher_every") == "; it is gone, the value is always 1"
    assert hint("optim.lr") == ""
