"""Which metrics stand in which chart, of one run and of several."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from hardpatch import curves
from hardpatch.page.charts import Line, chart
from hardpatch.page.folder import RunFiles, Series
from hardpatch.page.thin import BUCKETS

MORE: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    ("momentum of the teacher", (("momentum", "momentum"),)),
    ("error of the difficulty map of the checks", (("check_map_error", "error"),)),
    (
        "nearest neighbors of the checks that stay",
        (("check_same_neighbors", "since the last check"), ("check_start_neighbors", "since the start")),
    ),
    ("linear probe of the checks, top-1", (("check_linear_top1", "linear probe"),)),
    (
        "losses of the detector",
        (
            ("loss_classifier", "classes"),
            ("loss_box_reg", "boxes"),
            ("loss_mask", "masks"),
            ("loss_objectness", "objectness of proposals"),
            ("loss_rpn_box_reg", "boxes of proposals"),
        ),
    ),
    ("loss of mined patches over that of the others", (("mined_loss_ratio", "ratio"),)),
    ("overlap of mined patches with the truly hardest", (("mined_overlap", "overlap"),)),
    ("norm of the gradient", (("gradient_norm", "norm"),)),
    ("images per second", (("images_per_second", "images/s"),)),
    ("peak memory of tensors, GiB", (("memory_gib", "memory"),)),
)
"""Charts beside those of :data:`hardpatch.curves.PANELS`, in the same form."""

UNDRAWN = (
    *("check_mean_color", "check_nearest_patch", "check_variation", "check_chance", "check_queries"),
    *("skipped_steps", "mining_stopped"),
)
"""Metrics that are the same at every step of a sound run: without a chart, but in the table of numbers."""
LABELS = {
    key: f"{title}: {name}" if len(keys) > 1 else title for title, keys in (*curves.PANELS, *MORE) for key, name in keys
}
"""Metrics in words, by their names."""


@dataclass(frozen=True)
class Panel:
    """A chart of the page."""

    title: str
    svg: str
    lines: tuple[Line, ...]
    thinned: bool
    """True if a line has fewer points than the metric"""


def thinning_line(runs: Sequence[RunFiles]) -> str:
    """Return a sentence about the points that curves leave out, empty if they have all."""
    most = max((series.points for run in runs for series in run.series.values() if series.thinned), default=0)
    if not most:
        return ""
    return (
        f"Curves are thinned: of up to {most:,} points each keeps at most {4 * BUCKETS}, the first, the lowest, the "
        f"highest and the last of each of {BUCKETS} pieces, so that no extreme is lost. metrics.jsonl has all."
    )


def panels_of(run: RunFiles) -> list[Panel]:
    """Return the charts of one run: related metrics together."""
    panels: list[Panel] = []
    for title, keys in _groups([run]):
        found = [(name, run.series[key]) for key, name in keys if key in run.series]
        panels.append(_panel(f"p{len(panels)}", title, [(name, series, k) for k, (name, series) in enumerate(found)]))
    return panels


def panels_side_by_side(runs: Sequence[RunFiles], names: Sequence[str]) -> list[Panel]:
    """Return the charts of several runs: one for each metric, a line for each run that has it."""
    panels: list[Panel] = []
    for group, keys in _groups(runs):
        for key, name in keys:
            found = [(names[k], run.series[key], k) for k, run in enumerate(runs) if key in run.series]
            title = f"{group}: {name}" if len(keys) > 1 else group
            if found:
                panels.append(_panel(f"p{len(panels)}", title, found))
    return panels


def _panel(key: str, title: str, found: Sequence[tuple[str, Series, int]]) -> Panel:
    lines = tuple(Line(name, series.curve, number) for name, series, number in found)
    told = "; ".join(
        f"{name} from {series.first:.4g} to {series.last:.4g}, lowest {series.lowest:.4g}, highest {series.highest:.4g}"
        for name, series, _ in found
    )
    title = title if title.startswith("k-NN") else title[:1].upper() + title[1:]
    return Panel(title, chart(lines, f"{title}, by step. {told}", key), lines, any(s.thinned for _, s, _ in found))


def _groups(runs: Sequence[RunFiles]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Yield the title and the metrics (key and name) of each chart that has any; unknown metrics stand alone."""
    left = dict.fromkeys(key for run in runs for key in run.series if key not in UNDRAWN)
    for title, keys in (*curves.PANELS, *MORE):
        present = [(key, name) for key, name in keys if key in left]
        for key, _ in present:
            del left[key]
        if present:
            yield title, present
    for key in left:
        yield key.replace("_", " "), [(key, key)]
