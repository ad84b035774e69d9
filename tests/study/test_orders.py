"""Pairs that the paper orders, against cases computed by hand."""

import math
from types import MappingProxyType

import pytest

from hardpatch.study.orders import pairs
from hardpatch.study.rows import StudyRow, Table
from hardpatch.study.values import MeanStd, RowResult


def result(name: str, group: str, paper: dict[str, float], **ours: tuple[float, ...]) -> RowResult:
    values = {key: MeanStd(each) for key, each in ours.items()}
    return RowResult(StudyRow(name, group=group, paper=MappingProxyType(paper)), values, "")


def table(*results: RowResult) -> Table:
    return Table("tableX", "Three rows", tuple(each.row for each in results), ("finetune", "knn"))


MAE = result("MAE", "a", {"finetune": 82.2, "knn": 30.0}, knn=(0.30, 0.32, 0.34), linear=(0.50, 0.50, 0.50))
HPM = result("HPM", "a", {"finetune": 83.0, "knn": 36.0}, knn=(0.40, 0.42, 0.44), linear=(0.49, 0.50, 0.51))
OTHER = result("other", "b", {"finetune": 84.0}, knn=(0.1, 0.1, 0.1))


def test_difference_and_its_standard_error_by_hand() -> None:
    knn, linear = sorted(pairs(table(MAE, HPM), [MAE, HPM]), key=lambda pair: pair.metric)
    assert (knn.higher, knn.lower, knn.paper_metric, knn.metric) == ("HPM", "MAE", "knn", "knn")
    assert knn.paper_difference == pytest.approx(6.0)
    assert knn.difference == pytest.approx(10.0)
    # both have a standard deviation of 2 points: 2 / sqrt(3) each
    assert knn.standard_error == pytest.approx(math.sqrt(2 * 4 / 3))
    assert knn.verdict == "same"
    # the paper's table has no linear column: its order in the first column that both rows have
    assert linear.paper_metric == "finetune"
    assert linear.paper_difference == pytest.approx(0.8)
    assert linear.difference == pytest.approx(0.0)
    assert linear.verdict == "no difference"


def test_the_other_order_is_called_so() -> None:
    worse = result("HPM", "a", {"finetune": 83.0}, knn=(0.20, 0.21, 0.22))
    assert [pair.verdict for pair in pairs(table(MAE, worse), [MAE, worse])] == ["other"]


def test_only_rows_of_a_group_are_compared() -> None:
    assert {(pair.higher, pair.lower) for pair in pairs(table(MAE, HPM, OTHER), [MAE, HPM, OTHER])} == {("HPM", "MAE")}


def test_equal_figures_of_the_paper_order_nothing() -> None:
    twin = result("twin", "a", {"finetune": 82.2}, knn=(0.9, 0.9))
    plain = result("MAE", "a", {"finetune": 82.2}, knn=(0.1, 0.1))
    assert pairs(table(plain, twin), [plain, twin]) == []


def test_one_seed_has_no_verdict() -> None:
    first = result("MAE", "a", {"finetune": 82.2}, knn=(0.3,))
    second = result("HPM", "a", {"finetune": 83.0}, knn=(0.4,))
    (pair,) = pairs(table(first, second), [first, second])
    assert pair.standard_error is None
    assert pair.verdict == "one seed"
