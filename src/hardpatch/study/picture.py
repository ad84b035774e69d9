"""Draw the table of a study: a dot with its error bar for each row."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hardpatch.figures import FAINT, INK, LINES
from hardpatch.files import atomic_path
from hardpatch.study.plan import Study, metric_title
from hardpatch.study.rows import METRICS, Table
from hardpatch.study.table import columns
from hardpatch.study.values import MeanStd, RowResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = tuple[float, float]
"""Mean and standard deviation as shown: percent, or a ratio."""


def draw(study: Study, table: Table, results: Sequence[RowResult]) -> Path | None:
    """Draw ``table.png``: a panel for each metric, a dot for each row, bars of one standard deviation.

    Returns:
        The picture, or None if nothing is measured yet.
    """
    from matplotlib.figure import Figure

    ours, papers = columns(table, results)
    if not ours:
        return None
    panels = [
        (metric_title(study, METRICS[key]), LINES[0], [_our_point(result.ours.get(key)) for result in results])
        for key in ours
    ]
    panels += [
        (
            f"paper: {METRICS[key].title.replace('larger', 'ViT-L')}",
            LINES[1],
            [_paper_point(result.row.paper.get(key)) for result in results],
        )
        for key in papers
    ]
    # Sizes in inches are fixed by hand, as in the other figures: nothing overlaps and no layout engine is needed.
    names, panel, gap, foot, head, pitch = 0.085 * max(len(item.row.name) for item in results), 2.7, 0.3, 0.5, 0.95, 0.3
    width, height = 0.2 + names + len(panels) * (panel + gap), head + pitch * len(results) + foot
    figure = Figure(figsize=(width, height), dpi=130, facecolor="white")
    left, top = 0.15 / width, 1 - 0.3 / height
    figure.text(left, top, table.title, fontsize=11, color=INK, weight="bold")
    seeds = f"{study.seeds} seeds, bars of one standard deviation" if study.seeds > 1 else "one seed"
    figure.text(left, top - 0.2 / height, f"scale {study.scale}, {seeds}", fontsize=8, color=INK)
    for number, (title, color, points) in enumerate(panels):
        left = 0.2 + names + number * (panel + gap)
        axes = figure.add_axes((left / width, foot / height, panel / width, pitch * len(results) / height))
        if number < len(ours):
            for y, result in enumerate(results):
                if not result.ours:
                    axes.text(0.5, y, "not run", transform=axes.get_yaxis_transform(), fontsize=8, color=INK)
        _draw_points(axes, points, results, color)
        _format_axes(axes, title, results, with_names=number == 0)
    path = study.out / table.name / "table.png"
    with atomic_path(path) as partial:
        figure.savefig(partial)
    return path


def _draw_points(axes: "Axes", points: Sequence[Point | None], results: Sequence[RowResult], color: str) -> None:
    """Draw a dot with its error bar for each row that has one."""
    for y, (result, point) in enumerate(zip(results, points, strict=True)):
        if point is not None:
            mean, std = point
            axes.errorbar(
                mean,
                y,
                xerr=std or None,
                fmt="o",
                color=color,
                markersize=7 if result.row.default else 5,
                markerfacecolor=color if result.row.default else "white",
                markeredgewidth=1.4,
                capsize=3,
                linewidth=1.2,
            )
    means = [point[0] for point in points if point is not None]
    if len(set(means)) == 1:
        axes.set_xlim(means[0] - 1, means[0] + 1)
    else:
        axes.margins(x=0.12)


def _format_axes(axes: "Axes", title: str, results: Sequence[RowResult], *, with_names: bool) -> None:
    """Set the limits, ticks, titles and grid of a panel."""
    from matplotlib.ticker import MaxNLocator

    axes.set_ylim(len(results) - 0.5, -0.5)
    axes.set_yticks(range(len(results)), [result.row.name if with_names else "" for result in results])
    for label, result in zip(axes.get_yticklabels(), results, strict=True):
        label.set_fontweight("bold" if result.row.default else "normal")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_title(title, fontsize=9, color=INK, loc="left")
    axes.set_xlabel("times" if title.endswith("speedup") else "%", fontsize=8, color=INK)
    axes.tick_params(labelsize=8, colors=INK, length=0)
    axes.grid(color=FAINT, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def _our_point(metric: MeanStd | None) -> Point | None:
    return None if metric is None else (metric.factor * metric.mean, metric.factor * (metric.std or 0.0))


def _paper_point(percent: float | None) -> Point | None:
    return None if percent is None or not math.isfinite(percent) else (percent, 0.0)
