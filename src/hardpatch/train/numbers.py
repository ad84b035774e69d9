"""Numbers of a run that a terminal shows, by name, and which of their values are good."""

import math
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

State = Literal["good", "watch", "bad"]

# Preliminary, as those of the verdict, which the run ends with.
TOKENS_USED = 0.05
"""Entropy of the use of tokens below which they collapse onto one."""
DIRECTIONS = 1.5
"""RankMe below which all features are alike."""
ERRORS = 2.0
"""Sampling errors by which an accuracy has to differ from the first one to be better or worse."""


class Number(NamedTuple):
    """Number with a name, and one line about its value."""

    title: str
    value: str
    state: State | None = None
    """None where a value alone tells nothing"""
    note: str = ""


class Named(NamedTuple):
    """Name and format of a metric."""

    metric: str
    title: str
    spec: str = ".4f"
    above: float | None = None
    """value above which it is good"""
    good: str | None = ""
    """note on good values; None if a good value is no news"""
    watch: str = ""
    """note on other values"""
    first: bool = False
    """note the first value"""


STEP = (
    Named("loss", "loss", first=True),
    Named("reconstruction_loss", "reconstruction loss", first=True),
    Named("pair_accuracy", "loss predictor", ".1%", 0.5, "of pairs ranked right", "of pairs right, chance is 50 %"),
    Named("spearman", "  rank correlation", ".2f", 0.0, "", "predicted and true loss disagree"),
    Named("alpha", "hard share (alpha)", ".0%"),
    Named("mined_loss_ratio", "  their loss / others'", ".2f", 1.0, "hard ones are mined", "easy ones are mined"),
    Named("token_entropy", "use of tokens", ".3f", TOKENS_USED, "", "collapsed onto one"),
    Named("perplexity", "perplexity", ".1f"),
    Named("memory_gib", "GPU memory, GiB", ".1f"),
)
"""Metrics of a training step."""
CHECK = (
    Named("knn_top1", "k-NN", ".1%", first=True),
    Named("top1", "top-1", ".1%", first=True),
    Named("top5", "top-5", ".1%", first=True),
    Named("miou", "mIoU", ".1%", first=True),
    Named("pixel_accuracy", "pixel accuracy", ".1%", first=True),
    Named("box_ap", "AP of boxes", ".1%", first=True),
    Named("mask_ap", "AP of masks", ".1%", first=True),
    Named("check_loss", "loss, fixed masks", first=True),
    Named("check_knn_top1", "k-NN", ".1%", first=True),
    Named("check_linear_top1", "linear probe", ".1%", first=True),
    Named("check_rankme", "features (RankMe)", ".1f", DIRECTIONS, None, "all alike", first=True),
    Named("check_map_correlation", "difficulty map", ".2f", 0.0, "", "upside down"),
)
"""Metrics of an evaluation."""
TRIVIAL = ("check_mean_color", "check_blurred_neighbors", "check_nearest_patch")
"""Losses of trivial predictors."""


def numbers(named: tuple[Named, ...], row: Mapping[str, Any], first: Mapping[str, Any]) -> list[Number]:
    """Return the numbers of a row of metrics.

    Args:
        named: which of them.
        row: the metrics.
        first: those of the first such row.
    """
    return [_number(each, row, first) for each in named if each.metric in row]


def alarms(row: Mapping[str, Any]) -> list[Number]:
    """Return numbers of a row that are only shown where something is wrong."""
    found = []
    if row.get("mining_stopped"):
        found.append(Number("mining", "stopped", "bad", "the difficulty map is upside down"))
    if row.get("skipped_steps"):
        found.append(Number("skipped steps", f"{row['skipped_steps']:.0f}", "watch", "NaN or infinite"))
    return found


def _number(named: Named, row: Mapping[str, Any], first: Mapping[str, Any]) -> Number:
    value, before = row[named.metric], first.get(named.metric)
    note = f"{_text(before, named.spec)} at first" if named.first and before not in (None, value) else ""
    state: State | None = None
    if named.above is not None and value <= named.above:
        state, note = "watch", named.watch
    elif named.above is not None and named.good is not None:
        state, note = "good", named.good
    elif named.metric == "check_loss" and first is not row:
        trivial = min((row[name] for name in TRIVIAL if name in row), default=None)
        if trivial is not None:
            state, note = ("good" if value < trivial else "watch"), f"best trivial predictor {trivial:.4f}"
    elif "check_queries" in row and named.spec.endswith("%") and before is not None and first is not row:
        error = math.sqrt(
            sum(max(p * (1 - p), 1 / row["check_queries"]) for p in (value, before)) / row["check_queries"]
        )
        if abs(value - before) > ERRORS * error:
            state = "good" if value > before else "watch"
    return Number(named.title, _text(value, named.spec), state, note)


def _text(value: float, spec: str) -> str:
    return f"{100 * value:{spec[:-1]}f} %" if spec.endswith("%") else f"{value:{spec}}"
