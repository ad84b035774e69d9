"""Every row of every table describes a run that can be built, at every scale."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hardpatch.errors import UserError
from hardpatch.pretrain import config, recipes
from hardpatch.pretrain.build import initial_model
from hardpatch.pretrain.sections import RunConfig
from hardpatch.study import rows
from hardpatch.study.rows import METRICS, Row, Table
from hardpatch.study.runner import Study, Task, plan
from hardpatch.study.scales import SCALES, configure, merged

WEIGHTS = {"dino": "dino.safetensors", "clip": "clip.safetensors"}
PLAIN = Table("plain", "A table", (), "nowhere")


def tasks(table: str, scale: str) -> list[Task]:
    stages, reasons = plan(
        Study(
            table=rows.read(table),
            scale=scale,
            out=Path("study"),
            data="images",
            train="images",
            val="images",
            seeds=2,
            weights=WEIGHTS,
            tokenizer="tokenizer.safetensors",
        )
    )
    assert not reasons
    return [task for stage in stages for task in stage]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", rows.names())
def test_every_row_builds_a_model(name: str, scale: str) -> None:
    found = tasks(name, scale)
    table = rows.read(name)
    assert {task.row.key for task in found} >= {row.key for row in table.rows}
    for task in found:
        if task.seed == 0:
            with torch.device("meta"):  # without memory
                model = initial_model(task.run)
            assert sum(p.numel() for p in model.parameters()) > 0
            assert model.has_predictor == (task.run.method.predicting_loss != "none")


@pytest.mark.parametrize("name", rows.names())
def test_rows_have_names_of_their_own_and_differ(name: str) -> None:
    table = rows.read(name)
    assert len({row.key for row in table.rows}) == len(table.rows)
    assert sum(row.default for row in table.rows) <= 1
    assert all(set(row.paper) <= set(METRICS) for row in table.rows)
    found = [task for task in tasks(name, "micro") if task.row in table.rows]
    runs = {(config.to_yaml(replace(task.run, seed=0)), task.row.keep) for task in found}
    assert len(runs) == len(table.rows)
    assert {task.run.seed for task in found} == {0, 1}
    assert len({task.folder for task in found}) == len(found)


def test_a_row_is_the_recipe_but_for_what_it_says() -> None:
    table = rows.read("table2")
    default = next(row for row in table.rows if row.default)
    run = configure(table, default, SCALES["paper"], data="images")
    assert run == config.build(recipes.read("imagenet_base_200"), ["--data.path", "images"])
    easy = next(row for row in table.rows if row.settings.get("method.mining") == "easy")
    assert config.differences(run, configure(table, easy, SCALES["paper"], data="images")) == {
        "method.mining": ("hard", "easy")
    }


@pytest.mark.parametrize(
    ("row", "recipe"),
    [
        ("HPM, 4 times as long", "imagenet_base_800"),
        ("HPM, larger, 4 times as long", "imagenet_large_800"),
    ],
)
def test_longer_schedules_are_the_recipes_of_that_length(row: str, recipe: str) -> None:
    table = rows.read("table4")
    chosen = next(candidate for candidate in table.rows if candidate.name == row)
    run = configure(table, chosen, SCALES["paper"], data="images")
    assert run == config.build(recipes.read(recipe), ["--data.path", "images"])


@pytest.mark.parametrize(
    ("row", "recipe"),
    [
        ("SimMIM", "simmim_imagenet_base_800"),
        ("SimMIM with HPM", "hpm_simmim_imagenet_base_800"),
        ("BEiT with HPM", "hpm_beit_imagenet_base_800"),
        ("iBOT", "ibot_imagenet_base_400"),
        ("iBOT with HPM", "hpm_ibot_imagenet_base_400"),
    ],
)
def test_other_hosts_are_their_recipes(row: str, recipe: str) -> None:
    table = rows.read("tableB")
    chosen = next(candidate for candidate in table.rows if candidate.name == row)
    given = {"method.tokenizer": "t"} if "BEiT" in row else {}
    run = configure(table, chosen, SCALES["paper"], data="images", given=given)
    assert run == config.build(merged(recipes.read(recipe), {"data.path": "images"}, given))


def changed(*settings: str, row: Row) -> RunConfig:
    return configure(PLAIN, row, SCALES["micro"], settings=settings)


def test_the_users_settings_hold_for_all_rows_and_the_rows_own_prevail() -> None:
    row = Row("row", {"method.alpha_end": 0.7})
    run = changed("--method.alpha_end", "0.1", "--epochs", "3", row=row)
    assert (run.method.alpha_end, run.epochs, run.steps) == (0.7, 3, None)


def test_seeds_count_from_the_users() -> None:
    study = Study(
        rows.read("table3"), "micro", Path("study"), "images", "images", "images", 2, settings=("--seed", "5")
    )
    (found,), _ = plan(study)
    assert [task.run.seed for task in found] == [5] * 4 + [6] * 4
    assert [task.folder.name for task in found] == ["seed_0"] * 4 + ["seed_1"] * 4


def test_length_is_of_the_users_schedule_too() -> None:
    run = changed("--steps", "10", "--optim.warmup", "0.2", row=Row("long", length=4))
    assert run.steps == 40
    assert run.optim.warmup == pytest.approx(0.05)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UserError, match=r"TABLE: .*did you mean 'table2'"):
        rows.read("table22")
    with pytest.raises(UserError, match="unknown argument"):
        changed("--no_such", "1", row=Row("row"))


def test_rows_without_their_frozen_weights_are_named() -> None:
    study = Study(rows.read("table1"), "micro", Path("study"), "images", "images", "images", weights={"dino": "x"})
    (found,), reasons = plan(study)
    assert set(reasons.values()) == {"it needs --clip_weights FILE"}
    assert {task.run.method.frozen for task in found} == {None, "dino"}
    assert len(found) + len(reasons) == len(study.table.rows)


def test_rows_under_labels_come_after_the_run_that_tells_them_what_is_hard() -> None:
    (first, then), _ = plan(Study(rows.read("tableD"), "micro", Path("study"), "images", "images", "images", seeds=3))
    assert [task.run.method.predicting_loss for task in first] == ["relative"] * 3
    assert [task.run.seed for task in first] == [0, 1, 2]
    assert len(then) == 12
    assert {task.row.keep for task in then} == {"random", "easiest", "hardest", "all"}
