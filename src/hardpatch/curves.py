"""Training curves of a run as a picture."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hardpatch.figures import FAINT, INK, LINES
from hardpatch.files import atomic_path

PANELS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (
        "loss",
        (
            ("loss", "total"),
            ("reconstruction_loss", "reconstruction"),
            ("predicting_loss", "predicting"),
            ("class_loss", "class tokens"),
            ("val_loss", "validation"),
            ("main_loss", "UperNet"),
            ("auxiliary_loss", "auxiliary head"),
        ),
    ),
    (
        "loss of the images of the checks",
        (
            ("check_loss", "looked at"),
            ("check_blurred_neighbors", "blurred neighbors"),
            ("check_train_loss", "trained on"),
        ),
    ),
    (
        "difficulty map of the checks, rank correlation",
        (("check_map_correlation", "mined by"), ("check_masked_correlation", "masked patches")),
    ),
    ("effective rank of features (RankMe)", (("check_rankme", "RankMe"),)),
    ("loss predictor", (("pair_accuracy", "pairs in correct order"), ("spearman", "rank correlation"))),
    ("use of tokens, 1 = uniform", (("token_entropy", "predicted"), ("target_entropy", "target"))),
    ("accuracy on validation images", (("top1", "top-1"), ("top5", "top-5"))),
    (
        "pixels of validation images",
        (("miou", "mIoU"), ("mean_accuracy", "mean accuracy of classes"), ("pixel_accuracy", "accuracy")),
    ),
    ("mean average precision of labels", (("map", "mAP"),)),
    ("R^2 on validation images", (("r2", "R^2"),)),
    ("average precision on validation images", (("box_ap", "boxes"), ("mask_ap", "masks"))),
    ("k-NN top-1", (("knn_top1", "k-NN top-1"), ("check_knn_top1", "checks"))),
    ("share of hard patches (alpha)", (("alpha", "alpha"),)),
    ("learning rate", (("lr", "learning rate"),)),
)
"""Title of each panel and its curves: a key of the metrics and its name in the legend."""


def training_curves(metrics: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Draw the metrics of a run to a picture at ``path``, and return the path.

    Args:
        metrics: the rows of ``metrics.jsonl``; a row need not have every key. The keys in :data:`PANELS` are drawn,
            against ``epoch`` if any row has it and against ``step`` otherwise.
        path: a ``.png``, ``.pdf`` or ``.svg`` file; its folder is created.

    Raises:
        ValueError: if no row has a metric to draw.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    axis = "epoch" if any("epoch" in row for row in metrics) else "step"
    curves = {key: _curve(metrics, axis, key) for _, keys in PANELS for key, _ in keys}
    panels = [(title, [(key, name) for key, name in keys if curves[key][0]]) for title, keys in PANELS]
    panels = [(title, keys) for title, keys in panels if keys]
    if not panels:
        keys_to_draw = ", ".join(curves)
        raise ValueError(
            f"metrics: expected rows with {axis!r} and one of {keys_to_draw}; got {len(metrics)} rows with none"
        )
    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.2 * columns, 2.9 * rows), dpi=110)
    for number, (title, keys) in enumerate(panels, 1):
        axes = figure.add_subplot(rows, columns, number)
        for color, (key, name) in zip(LINES, keys, strict=False):
            x, y = curves[key]
            axes.plot(x, y, color=color, label=name, linewidth=1.6, marker="o" if len(x) <= 20 else "", markersize=3)
        axes.set_title(title, fontsize=10, color=INK, loc="left", y=1)  # with y, matplotlib does not search for it
        axes.set_xlabel(axis, fontsize=8, color=INK)
        axes.tick_params(labelsize=8, colors=INK, length=0)
        axes.grid(color=FAINT, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
        axes.yaxis.set_major_formatter("{x:g}")
        if len(dict(PANELS)[title]) > 1:
            axes.legend(fontsize=8, framealpha=1, edgecolor="none", labelcolor=INK)
    ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.1).execute(figure)  # once; as the figure's engine it draws it twice
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as partial:
        figure.savefig(partial)
    return path


def _curve(metrics: Sequence[Mapping[str, Any]], axis: str, key: str) -> tuple[list[float], list[float]]:
    """Return x and y of the rows that have both values; None, NaN and infinite values are left out."""
    pairs = [(row[axis], row[key]) for row in metrics if row.get(axis) is not None and row.get(key) is not None]
    points = [(float(x), float(y)) for x, y in pairs if math.isfinite(y)]
    return [x for x, _ in points], [y for _, y in points]
