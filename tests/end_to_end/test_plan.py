"""Plans through the command line and from Python: what is printed, what is started, and mistakes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import hardpatch
from hardpatch.cli import main
from hardpatch.errors import UserError


def test_plan_prints_what_each_choice_rests_on(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--batch_size", "4", str(images), "--hours", "0.004"]) == 0  # a setting may stand first
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert list(lines)[:4] == ["set", "machine", "images", "model"]
    assert list(lines)[-2:] == ["length", "time"]
    assert 8 <= len(lines) <= 12
    assert "30 images, sides of 40 to 48 px" in lines["set"]
    assert "40 x 40 px" in lines["images"]
    assert lines["batch"].endswith("yours: batch_size 4")


def test_a_folder_without_recipe_is_planned_and_trained(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = ["pretrain", "--data", str(images), "--hours", "0.003", "--model.width", "32", "--out", str(out)]
    assert main(command) == 0
    text = (out / "plan.txt").read_text()
    assert text in capsys.readouterr().err
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["model"]["width"] == 32
    assert config["optim"]["lr"] > 0
    assert config["steps"] >= 1
    assert (
        main(["pretrain", "--config", str(out / "config.yaml"), "--steps", "1", "--out", str(tmp_path / "again")]) == 0
    )


def test_a_recipe_keeps_its_settings_and_takes_the_length_from_the_hours(images: Path, tmp_path: Path) -> None:
    result = tmp_path / "plan.json"
    assert main(["plan", str(images), "--recipe", "cifar10_tiny", "--hours", "0.01", "--json", str(result)]) == 0
    plan = json.loads(result.read_text())
    assert plan["config"]["model"]["size"] == "tiny"
    assert plan["config"]["epochs"] is None
    assert plan["config"]["steps"] < 100
    assert "by --hours 0.01" in plan["reasons"]["length"]


def test_a_recipe_of_days_says_so_and_names_the_way_out(images: Path) -> None:
    plan = hardpatch.plan(images, recipe="imagenet_base_200", epochs=1e6)
    assert "days" in plan.announcement() or "years" in plan.announcement()
    assert "--hours H" in plan.announcement()
    assert "--hours" not in hardpatch.plan(images, recipe="demo", epochs=1).announcement()


def test_the_plan_in_python(images: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"model.width": 32}
    plan = hardpatch.plan(images, hours=0.003, **changes)
    result = hardpatch.pretrain(plan, out=tmp_path / "run")
    assert result.finished
    assert result.total == plan.run.steps
    with pytest.raises(UserError, match="it holds all settings"):
        hardpatch.pretrain(plan, epochs=3, out=tmp_path / "other")


def test_print_config_is_a_recipe(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(images), "--hours", "0.003", "--print_config"]) == 0
    (tmp_path / "mine.yaml").write_text(capsys.readouterr().out)
    command = ["pretrain", "--config", str(tmp_path / "mine.yaml"), "--steps", "1", "--out", str(tmp_path / "run")]
    assert main(command) == 0


def test_mistakes(images: Path, tmp_path: Path, run: Path, fails: Callable[..., str]) -> None:
    assert "--hours: expected a number above 0, got 0" in fails("plan", images, "--hours", "0")
    assert "--hours, --steps: expected one of the two" in fails("plan", images, "--hours", "1", "--steps", "5")
    assert "--hours: a resumed run keeps its length" in fails("pretrain", "--resume", "--out", run, "--hours", "1")
    assert "already holds a run" in fails("pretrain", "--data", images, "--hours", "1", "--out", run)
    assert "unknown argument" in fails("plan", images, "--hours", "1", "--batchsize", "3")
    assert "--data" in fails("plan", tmp_path / "none")


def test_recipes_show_what_they_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", "--images", "3000", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["demo"]["side"] == 32
    assert rows["demo"]["images_seen"] == pytest.approx(14 * 3000, rel=0.01)
    assert rows["imagenet_base_200"]["images_seen"] == pytest.approx(200 * 3000, rel=0.01)
    assert rows["imagenet_large_200"]["seconds"] > rows["imagenet_base_200"]["seconds"] > rows["demo"]["seconds"]
    assert rows["hpm_fast"]["seconds"] < rows["imagenet_base_200"]["seconds"]
    assert 80e6 < rows["simmim_imagenet_base_800"]["parameters"] < 95e6
