"""Several labels or numbers for each image: how they are read, their loss, and their measures against slow ones."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import mean_absolute_error, r2_score

from hardpatch.choices import TaskName
from hardpatch.data.columns import Columns
from hardpatch.data.sources import open_source
from hardpatch.data.targets import TargetTable, read_targets
from hardpatch.errors import UserError
from hardpatch.finetune.objective import TargetObjective
from hardpatch.finetune.settings import FinetuneSettings
from hardpatch.finetune.target_measure import (
    MultilabelEvaluation,
    RegressionEvaluation,
    average_precision,
    measure_targets,
)
from tests.finetune.rendered import COLORS, write_csv, write_disks, write_parquet


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("disks") / "set"
    table = write_disks(folder, 12, 0)
    return {"csv": write_csv(folder / "set.csv", table), "parquet": write_parquet(folder / "set.parquet", table)} | {
        "table": table
    }


def read(path: Path, task: TaskName, *names: str, **columns: str) -> TargetTable:
    return read_targets(open_source(path), task, Columns(**columns), names)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_lists_and_indicator_columns_are_the_same_targets(disks: dict[str, Any], kind: str) -> None:
    lists, columns = read(disks[kind], "multilabel", "tags"), read(disks[kind], "multilabel", *COLORS)
    expected = torch.tensor([[float(name in tags) for name in sorted(COLORS)] for tags in disks["table"]["tags"]])
    assert lists.names == tuple(sorted(COLORS))
    assert torch.equal(lists.values, expected)
    assert columns.names == tuple(COLORS)
    assert torch.equal(columns.values, expected[:, [2, 1, 0]])
    assert torch.equal(read(disks[kind], "multilabel", label="tags").values, expected)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_numbers(disks: dict[str, Any], kind: str) -> None:
    found = read(disks[kind], "regression", "left", "area")
    assert found.names == ("left", "area")
    assert torch.equal(found.values, torch.tensor([disks["table"][name] for name in found.names]).T)


def test_several_tables_are_joined(disks: dict[str, Any]) -> None:
    found = read_targets(open_source([disks["csv"], disks["parquet"]]), "regression", Columns(), ["area"])
    assert found.values[:, 0].tolist() == pytest.approx(2 * disks["table"]["area"])


BAD: list[tuple[TaskName, Any, str]] = [
    ("regression", [1.0, float("nan")], r"1\.png.*'x': expected a finite number, got nan"),
    ("regression", [1.0, None], "expected a finite number, got None"),
    ("regression", ["1.5", "much"], "expected a finite number, got much"),
    ("regression", [True, False], "expected a finite number, got True"),
    ("multilabel", [["a"], None], "expected a list of names or numbers"),
    ("multilabel", [1.5, 2.5], "expected a list of names or numbers"),
    ("multilabel", [[], []], "expected labels of some image, all 2 have none"),
]


@pytest.mark.parametrize(("task", "values", "message"), BAD)
def test_values_that_are_no_targets(tmp_path: Path, task: TaskName, values: list[Any], message: str) -> None:
    table = write_disks(tmp_path / "set", 2, 0)
    path = write_parquet(tmp_path / "set" / "set.parquet", {"path": table["path"], "x": values})
    with pytest.raises(UserError, match=message):
        read(path, task, "x")


def test_columns_that_do_not_exist(disks: dict[str, Any]) -> None:
    for kind in ("csv", "parquet"):
        with pytest.raises(UserError, match=r"--target_columns.*no column 'height'"):
            read(disks[kind], "regression", "height")
    with pytest.raises(UserError, match=r"expected 0 or 1, got"):
        read(disks["csv"], "multilabel", "red", "area")
    with pytest.raises(UserError, match=r"expected only classes that --train has, got .green"):
        read_targets(open_source(disks["csv"]), "multilabel", Columns(), ["tags"], ["red", "blue"])


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30))
def test_average_precision_is_the_precision_at_the_positives(pairs: list[tuple[int, bool]]) -> None:
    scores, truth = torch.tensor([float(score) for score, _ in pairs]), torch.tensor([float(hit) for _, hit in pairs])
    found = average_precision(scores, truth)
    if not truth.any():
        assert found is None
        return
    slow = 0.0  # the precision among the images of at least the score, at each positive image
    for score, hit in pairs:
        at_least = [h for s, h in pairs if s >= score]
        slow += hit * sum(at_least) / len(at_least)
    assert found == pytest.approx(slow / float(truth.sum()))


def test_classes_without_positives_are_left_out_and_named() -> None:
    scores, table = torch.tensor([[2.0, 0.0], [1.0, 1.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    found = measure_targets(
        "multilabel", iter([(scores, torch.tensor([0, 1]), [])]), table, ("a", "b"), lambda s, t: s.mean()
    )
    assert isinstance(found, MultilabelEvaluation)
    assert (found.average_precision, found.score, found.chance) == ((1.0, None), 1.0, 0.5)
    assert found.report()["without_positives"] == ["b"]
    assert "1 classes without a positive image are left out" in found.line()
    with pytest.raises(UserError, match="--val: expected a positive image"):
        measure_targets(
            "multilabel", iter([(scores, torch.tensor([0, 1]), [])]), 0 * table, ("a", "b"), lambda s, t: s.mean()
        )


def test_regression_is_measured_as_by_scikit_learn() -> None:
    torch.manual_seed(0)
    scores, table = torch.randn(20, 3), torch.randn(20, 3)
    table[:, 2] = 7.0
    rows = torch.randperm(20)
    found = measure_targets("regression", iter([(scores, rows, [])]), table, ("a", "b", "c"), lambda s, t: s.mean())
    assert isinstance(found, RegressionEvaluation)
    assert found.r2[:2] == pytest.approx([r2_score(table[rows, k], scores[:, k]) for k in range(2)], abs=1e-6)
    assert found.r2[2] is None
    assert found.mae == pytest.approx([mean_absolute_error(table[rows, k], scores[:, k]) for k in range(3)], abs=1e-6)


def objective(table: torch.Tensor, units: Any = None, **settings: Any) -> TargetObjective:
    names = tuple("abc"[: table.shape[1]])
    run = FinetuneSettings(**settings)
    return TargetObjective(run, TargetTable(names, table), TargetTable(names, table), units, torch.device("cpu"))


def test_losses_by_hand() -> None:
    table = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
    scores = torch.tensor([[0.5, -1.0], [2.0, 0.3], [-0.2, 0.1], [0.7, 1.5]])
    log_p, log_not = torch.sigmoid(scores).log(), torch.sigmoid(-scores).log()
    plain = -(table * log_p + (1 - table) * log_not)
    assert objective(table, task="multilabel").loss(scores, table) == pytest.approx(plain.mean().item())
    weighted = objective(table, task="multilabel", class_weights=("b=3",)).loss(scores, table)
    assert weighted == pytest.approx((plain * torch.tensor([1.0, 3.0])).mean().item())
    balanced = objective(table, task="multilabel", class_weights=("balanced",)).loss(scores, table)
    positive = torch.tensor([1 / 3, 3 / 1])  # negatives over positives
    assert balanced == pytest.approx(-(positive * table * log_p + (1 - table) * log_not).mean().item())
    units = ([1.0, 2.0], [2.0, 5.0])
    error = (scores - table) / torch.tensor(units[1])
    assert objective(table, units, task="regression").loss(scores, table) == pytest.approx(error.square().mean().item())
    absolute = objective(table, units, task="regression", regression_loss="l1").loss(scores, table)
    assert absolute == pytest.approx(error.abs().mean().item())
