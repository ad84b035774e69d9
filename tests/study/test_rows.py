"""Runs of a table: each can be built at every scale and has the settings of its row."""

import pytest
import torch

from hardpatch.configuration import config
from hardpatch.configuration.build import initial_model
from hardpatch.configuration.sections import RunConfig
from hardpatch.errors import UserError
from hardpatch.pretrain import recipes
from hardpatch.study import rows
from hardpatch.study.plan import NO_TABLE
from hardpatch.study.rows import METRICS, StudyRow
from hardpatch.study.scales import SCALES, configure, merged
from tests.study.small import plan_of


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("name", rows.names())
def test_every_row_builds_a_model(name: str, scale: str) -> None:
    planned = plan_of(name, scale=scale, weights={"dino": "dino.safetensors", "clip": "clip.safetensors"})
    table = rows.read(name)
    for row in table.rows:
        assert (name, row.name) in planned.reasons or any(key[:2] == (name, row.name) for key in planned.runs)
    for task in (task for stage in planned.stages for task in stage if task.seed == 0):
        with torch.device("meta"):  # allocates nothing
            model = initial_model(task.run)
        assert sum(p.numel() for p in model.parameters()) > 0
        assert model.has_predictor == (task.run.method.predicting_loss != "none")


@pytest.mark.parametrize("name", rows.names())
def test_rows_have_unique_names_and_known_columns(name: str) -> None:
    table = rows.read(name)
    assert len({row.name for row in table.rows}) == len(table.rows)
    assert set(table.metrics) <= set(METRICS)
    assert all(set(row.paper) <= set(METRICS) for row in table.rows)


UNCHECKED = ["--verdict.checks", "0"]
"""Difference of all rows from their recipes: a study has its own measurements."""


def test_a_row_is_the_recipe_with_its_own_settings() -> None:
    table = rows.read("table3")
    default = next(row for row in table.rows if row.default)
    run = configure(table, default, SCALES["paper"], data="images")
    assert run == config.build(recipes.read("imagenet_base_200"), ["--data.path", "images", *UNCHECKED])
    easy = next(row for row in table.rows if row.settings.get("method.mining") == "easy")
    assert config.differences(run, configure(table, easy, SCALES["paper"], data="images")) == {
        "method.mining": ("hard", "easy")
    }


@pytest.mark.parametrize(
    ("table", "row", "large", "recipe"),
    [
        ("table6", "HPM, 800 epochs", False, "imagenet_base_800"),
        ("table6", "HPM, 800 epochs", True, "imagenet_large_800"),
        ("table6", "HPM, 200 epochs", True, "imagenet_large_200"),
        ("table6", "MAE, 200 epochs", False, "mae_imagenet_base_200"),
        ("table6", "SimMIM, 800 epochs", False, "simmim_imagenet_base_800"),
        ("table6", "BEiT, 800 epochs", False, "beit_imagenet_base_800"),
        ("table6", "iBOT, 1600 epochs", False, "ibot_imagenet_base_400"),
        ("tableB", "HPM over BEiT", False, "hpm_beit_imagenet_base_200"),
        ("tableB", "iBOT", False, "ibot_imagenet_base_50"),
        ("tableB", "HPM over iBOT", False, "hpm_ibot_imagenet_base_50"),
    ],
)
def test_rows_equal_the_recipes_of_their_length(table: str, row: str, large: bool, recipe: str) -> None:
    chosen = next(candidate for candidate in rows.read(table).rows if candidate.name == row)
    overrides = {"method.tokenizer": "t"} if "BEiT" in row else {}
    run = configure(rows.read(table), chosen, SCALES["paper"], large=large, data="images", overrides=overrides)
    assert run == config.build(merged(recipes.read(recipe), {"data.path": "images"}, overrides), UNCHECKED)


def configured(*settings: str, row: StudyRow) -> RunConfig:
    return configure(NO_TABLE, row, SCALES["micro"], settings=settings)


def test_the_settings_of_a_row_override_those_of_the_user() -> None:
    row = StudyRow("row", settings={"method.alpha_end": 0.7})
    run = configured("--method.alpha_end", "0.1", "--epochs", "3", row=row)
    assert (run.method.alpha_end, run.epochs, run.steps) == (0.7, 3, None)


def test_length_multiplies_the_steps_of_the_user() -> None:
    run = configured("--steps", "10", "--optim.warmup", "0.2", row=StudyRow("long", length=4))
    assert run.steps == 40
    assert run.optim.warmup == pytest.approx(0.05)


@pytest.mark.parametrize("length", [0.125, 4.0])
def test_a_momentum_that_rises_through_the_whole_training_does_so_at_every_length(length: float) -> None:
    row = StudyRow("iBOT", settings={"method.host": "ibot"}, length=length)
    run = configure(NO_TABLE, row, SCALES["micro"])
    assert run.method.momentum_warmup == 1.0
    assert run.optim.warmup <= 1.0


def test_decoder_width_is_a_multiple_of_the_scale() -> None:
    run = configure(NO_TABLE, StudyRow("narrow", decoder_width=0.25), SCALES["paper"], data="images")
    assert run.model.decoder_width == 128


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UserError, match=r"TABLE: .*did you mean 'table2'"):
        rows.read("table22")
    with pytest.raises(UserError, match="unknown argument"):
        configured("--no_such", "1", row=StudyRow("row"))
