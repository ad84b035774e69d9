"""The paper's figures in the studies, against its tables typed in a second time, row by row in the order of print."""

import pytest

from hardpatch.study import rows

# Table: columns in the order of print, and the rows' figures; None where the paper has a dash.
PRINTED: dict[str, tuple[tuple[str, ...], list[tuple[float | None, ...]]]] = {
    "table1": (
        ("finetune", "linear", "knn"),
        [
            (82.23, 50.80, 29.84),
            (82.49, 51.26, 31.98),
            (82.95, 54.92, 36.09),
            (82.99, 32.65, 20.69),
            (83.13, 52.06, 35.73),
            (83.47, 55.25, 35.94),
            (83.46, 61.31, 41.53),
            (83.58, 63.25, 43.02),
            (84.13, 64.17, 47.25),
            (83.20, 59.80, 42.51),
            (83.31, 60.62, 43.26),
            (83.58, 62.22, 45.08),
        ],
    ),
    "table2": (
        ("finetune",),
        [(82.49,), (82.95,), (82.67,), (81.40,), (82.36,), (82.56,), (82.19,), (82.48,), (82.66,), (80.59,)],
    ),
    "table3": (("finetune",), [(82.49,), (82.95,), (82.36,), (82.49,), (82.95,), (81.71,)]),
    "table4": (
        ("finetune", "linear", "knn"),
        [(82.23, 51.26, 31.98), (82.77, 51.85, 34.47), (82.95, 54.92, 36.09)],
    ),
    "table5": (
        ("box_ap", "mask_ap", "miou"),
        [
            (40.45, 37.01, 40.49),
            (40.98, 37.34, 41.45),
            (42.03, 38.15, 42.09),
            (46.21, 41.55, 46.59),
            (46.43, 41.80, 46.97),
            (46.57, 41.96, 47.35),
        ],
    ),
    "table6": (
        ("finetune", "finetune_large"),
        [
            (80.9, 82.6),
            (83.2, 84.1),
            (83.6, None),
            (82.2, 83.3),
            (83.0, 84.5),
            (83.6, 85.1),
            (83.8, None),
            (84.2, 85.8),
            (83.2, 85.2),
            (84.0, None),
            (84.2, 85.9),
        ],
    ),
    "table7": (
        ("miou_160k", "miou_160k_large"),
        [(47.4, 49.9), (47.3, 49.1), (47.1, 53.3), (48.1, 53.6), (46.3, None), (48.5, 54.6)],
    ),
    "tableS4": (
        ("speedup", "finetune", "linear", "knn"),
        [
            (1.94, 82.67, 39.83, 16.83),
            (1.68, 82.50, 46.74, 22.63),
            (1.37, 82.75, 53.95, 33.60),
            (1.00, 82.95, 54.92, 36.09),
            (0.76, 82.84, 54.83, 35.93),
            (1.31, 82.74, 42.51, 17.67),
            (1.18, 82.80, 52.39, 29.46),
            (1.00, 82.95, 54.92, 36.09),
            (0.61, 82.81, 54.01, 36.54),
        ],
    ),
    "tableB": (("finetune",), [(80.9,), (81.5,), (82.9,), (83.4,)]),
    "tableD": (("supervised",), [(79.1,), (78.7,), (79.8,), (80.9,)]),
}


@pytest.mark.parametrize("name", PRINTED)
def test_every_figure_of_the_paper_is_in_its_row(name: str) -> None:
    columns, figures = PRINTED[name]
    table = rows.read(name)
    printed = [row for row in table.rows if not row.ours]
    assert table.metrics[: len(columns)] == columns
    assert [tuple(row.paper.get(column) for column in columns) for row in printed] == figures
    assert all(set(row.paper) <= set(columns) for row in printed)


def test_the_paper_has_no_other_tables() -> None:
    of_the_paper = {name for name in rows.names() if rows.read(name).of_the_paper}
    assert of_the_paper == set(PRINTED)
    assert {name for name in rows.names() if name.startswith("table")} == set(PRINTED)


def test_rows_of_the_paper_have_figures_and_others_have_none() -> None:
    for table in map(rows.read, rows.names()):
        for row in table.rows:
            assert bool(row.paper) == (table.of_the_paper and not row.ours), (table.name, row.name)


def test_methods_that_are_cited_are_those_that_this_package_does_not_have() -> None:
    cited = {row.name.partition(",")[0] for name in rows.names() for row in rows.read(name).rows if row.cited}
    assert cited == {"MoCo v3", "DINO", "BootMAE", "SemMAE", "supervised"}


@pytest.mark.parametrize(
    ("table", "row", "settings"),
    [
        ("table2", "gamma 0.9, alpha 1", (0.9, 1.0, 1.0, "hard", "relative")),
        ("table2", "gamma 0.75, alpha 0 to 1", (0.75, 0.0, 1.0, "hard", "relative")),
        ("table2", "gamma 0.5, random (alpha 0)", (0.5, 0.0, 0.0, "hard", "relative")),
        ("table3", "operation: argmin (alpha 0 to 0.5)", (0.75, 0.0, 0.5, "easy", "relative")),
        ("table3", "manner: hard to easy (alpha 0.5 to 0)", (0.75, 0.5, 0.0, "hard", "relative")),
        ("table4", "absolute MSE (Eq. 4)", (0.75, 0.0, 0.5, "hard", "absolute")),
        ("table1", "RGB + predicting loss", (0.75, 0.0, 0.0, "hard", "relative")),
        ("table6", "HPM, 800 epochs", (0.75, 0.0, 0.5, "hard", "relative")),
    ],
)
def test_rows_have_the_settings_of_the_paper(table: str, row: str, settings: tuple[object, ...]) -> None:
    from hardpatch.study.scales import SCALES, configure

    chosen = next(candidate for candidate in rows.read(table).rows if candidate.name == row)
    method = configure(rows.read(table), chosen, SCALES["paper"], data="images").method
    found = method.mask_ratio, method.alpha_start, method.alpha_end, method.mining, method.predicting_loss
    assert found == settings


@pytest.mark.parametrize(
    ("table", "row", "large", "epochs", "warmup_epochs"),
    [
        ("table6", "MAE, 200 epochs", False, 200, 10),
        ("table6", "MAE, 1600 epochs", False, 1600, 10),
        ("table6", "HPM, 800 epochs", True, 800, 40),
        ("table6", "SimMIM, 800 epochs", False, 800, 10),
        ("table6", "BEiT, 800 epochs", False, 800, 10),
        ("table6", "iBOT, 1600 epochs", False, 400, 10),
        ("tableB", "BEiT", False, 200, 10),
        ("tableB", "HPM over iBOT", False, 50, 10),
        ("table7", "HPM", True, 800, 40),
    ],
)
def test_lengths_of_the_paper(table: str, row: str, large: bool, epochs: float, warmup_epochs: float) -> None:
    from hardpatch.study.scales import SCALES, configure

    chosen = next(candidate for candidate in rows.read(table).rows if candidate.name == row)
    overrides = {"method.tokenizer": "t"} if "BEiT" in row else {}
    run = configure(rows.read(table), chosen, SCALES["paper"], large=large, data="images", overrides=overrides)
    assert run.epochs == pytest.approx(epochs)
    assert run.optim.warmup * epochs == pytest.approx(warmup_epochs)
    assert run.model.size == ("large" if large else "base")
