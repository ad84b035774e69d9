"""Runs of a table: each can be built at every scale and has the settings of its row."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hardpatch.errors import UserError
from hardpatch.pretrain import config, recipes
from hardpatch.pretrain.build import initial_model
from hardpatch.pretrain.sections import RunConfig
from hardpatch.study import rows
from hardpatch.study.plan import Study, Task, plan
from hardpatch.study.rows import METRICS, StudyRow, Table
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
    planned = tasks(name, scale)
    table = rows.read(name)
    assert {task.row.key for task in planned} >= {row.key for row in table.rows}
    for task in planned:
        if task.seed == 0:
            with torch.device("meta"):  # allocates nothing
                model = initial_model(task.run)
            assert sum(p.numel() for p in model.parameters()) > 0
            assert model.has_predictor == (task.run.method.predicting_loss != "none")


@pytest.mark.parametrize("name", rows.names())
def test_rows_have_unique_names_folders_and_settings(name: str) -> None:
    table = rows.read(name)
    assert len({row.key for row in table.rows}) == len(table.rows)
    assert sum(row.default for row in table.rows) <= 1
    assert all(set(row.paper) <= set(METRICS) for row in table.rows)
    planned = [task for task in tasks(name, "micro") if task.row in table.rows]
    runs = {(config.to_yaml(replace(task.run, seed=0)), task.row.keep) for task in planned}
    assert len(runs) == len(table.rows)
    assert {task.run.seed for task in planned} == {0, 1}
    assert len({task.folder for task in planned}) == len(planned)


def test_a_row_is_the_recipe_with_its_own_settings() -> None:
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
def test_longer_rows_equal_the_recipes_of_that_length(row: str, recipe: str) -> None:
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
def test_rows_of_other_hosts_equal_their_recipes(row: str, recipe: str) -> None:
    table = rows.read("tableB")
    chosen = next(candidate for candidate in table.rows if candidate.name == row)
    overrides = {"method.tokenizer": "t"} if "BEiT" in row else {}
    run = configure(table, chosen, SCALES["paper"], data="images", overrides=overrides)
    assert run == config.build(merged(recipes.read(recipe), {"data.path": "images"}, overrides))


def configured(*settings: str, row: StudyRow) -> RunConfig:
    return configure(PLAIN, row, SCALES["micro"], settings=settings)


def test_the_settings_of_a_row_override_those_of_the_user() -> None:
    row = StudyRow("row", {"method.alpha_end": 0.7})
    run = configured("--method.alpha_end", "0.1", "--epochs", "3", row=row)
    assert (run.method.alpha_end, run.epochs, run.steps) == (0.7, 3, None)


def test_seeds_count_from_the_seed_of_the_user() -> None:
    study = Study(
        rows.read("table3"), "micro", Path("study"), "images", "images", "images", 2, settings=("--seed", "5")
    )
    (stage,), _ = plan(study)
    assert [task.run.seed for task in stage] == [5] * 4 + [6] * 4
    assert [task.folder.name for task in stage] == ["seed_0"] * 4 + ["seed_1"] * 4


def test_length_multiplies_the_steps_of_the_user() -> None:
    run = configured("--steps", "10", "--optim.warmup", "0.2", row=StudyRow("long", length=4))
    assert run.steps == 40
    assert run.optim.warmup == pytest.approx(0.05)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UserError, match=r"TABLE: .*did you mean 'table2'"):
        rows.read("table22")
    with pytest.raises(UserError, match="unknown argument"):
        configured("--no_such", "1", row=StudyRow("row"))


def test_rows_without_frozen_weights_are_left_out_with_a_reason() -> None:
    study = Study(rows.read("table1"), "micro", Path("study"), "images", "images", "images", weights={"dino": "x"})
    (stage,), reasons = plan(study)
    assert set(reasons.values()) == {"it needs --clip_weights FILE"}
    assert {task.run.method.frozen for task in stage} == {None, "dino"}
    assert len(stage) + len(reasons) == len(study.table.rows)


def test_supervised_rows_come_after_the_run_that_ranks_their_patches() -> None:
    (prerequisites, supervised), _ = plan(
        Study(rows.read("tableD"), "micro", Path("study"), "images", "images", "images", seeds=3)
    )
    assert [task.run.method.predicting_loss for task in prerequisites] == ["relative"] * 3
    assert [task.run.seed for task in prerequisites] == [0, 1, 2]
    assert len(supervised) == 12
    assert {task.row.keep for task in supervised} == {"random", "easiest", "hardest", "all"}
