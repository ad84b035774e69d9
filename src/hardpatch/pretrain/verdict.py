"""Verdict on a run: whether it has learned anything, from the metrics of its checks. Nothing here computes a model."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from hardpatch.measure.trivial import NAMES
from hardpatch.pretrain.advice import suggestions
from hardpatch.pretrain.facts import Facts
from hardpatch.pretrain.guard import direction
from hardpatch.pretrain.worse import getting_worse

# All thresholds are preliminary: they were set on few runs.
CLEAR_ERRORS = 2.0
"""Sampling errors by which an accuracy has to rise above the untrained encoder's for "yes"."""
CLEAR_POINTS = 3.0
"""Points by which it has to rise, too."""
SOME_ERRORS = 1.0
"""Sampling errors by which it has to rise for "barely"."""
CHANCE_ERRORS = 2.0
"""Sampling errors above the share of the largest class from which on labels tell something."""
FLAT_DROP = 0.05
"""Fall of the loss, as a share of the untrained model's, below which it is flat; likewise at the mean color, late."""
MEAN_COLOR = 0.97
"""Loss, as a share of the mean color's, above which nothing more than the mean color has been learned."""
FALLING = 0.05
"""Share of the whole fall of the loss that happens in the last third of a run whose loss is still falling."""
RISE = 0.02
"""Rise of the held-out loss above its lowest value, as a share, from which on a run overfits."""
GAP = 0.2
"""Share by which the loss of training images lies below the held-out loss in a run that overfits."""
COLLAPSED = 1.5
"""RankMe below which all features are alike."""
SHRUNK = 1 / 3
"""RankMe, as a share of that before the training, below which a lower learning rate is worth trying."""
ALIKE = 0.02
"""Deviation of normalized pixels between images below which all images are the same."""
SAME_NEIGHBORS = 0.85
"""Share of the neighbors that are still the untrained encoder's above which little has changed."""
TEXT = {"mean_color": "the mean color", "blurred_neighbors": "blurred neighbors", "nearest_patch": "the nearest patch"}

Learned = Literal["yes", "barely", "no"]
Loss = Literal["falling", "settled", "flat", "overfitting"]
Map = Literal["upright", "at chance", "upside down", "no map"]


@dataclass(frozen=True)
class Verdict:
    """Verdict on a run."""

    learned: Learned
    reasons: tuple[str, ...]
    """plain sentences with numbers, the deciding one first"""
    numbers: dict[str, float]
    suggestions: tuple[tuple[str, str], ...]
    """why a setting is worth trying, and the command that tries it"""
    loss: Loss
    map: Map
    decided_by: Literal["labels", "images"]
    """what ``learned`` rests on"""

    @property
    def summary(self) -> str:
        """The verdict in one line: its two first reasons, and a map that is upside down."""
        reasons = [*self.reasons[:2], *(self.reasons[-1:] if self.map == "upside down" else ())]
        return f"{self.learned} - {'; '.join(dict.fromkeys(reasons))}"

    def __str__(self) -> str:
        """Return a few lines for the terminal."""
        lines = [f"Learned: {self.learned} - {self.reasons[0]}", *(f"  {reason}" for reason in self.reasons[1:])]
        return "\n".join([*lines, *(f"  try: {why}\n    {command}" for why, command in self.suggestions)])

    def to_dict(self) -> dict[str, Any]:
        """Return all values, ready for JSON."""
        suggestions = [{"why": why, "command": command} for why, command in self.suggestions]
        return {**asdict(self), "reasons": list(self.reasons), "suggestions": suggestions}


def verdict(checks: Sequence[Mapping[str, Any]], facts: Facts) -> Verdict:
    """Judge a run by the metrics of its checks.

    Args:
        checks: in the order of their steps; the first is that of the untrained encoder, or of the weights that the
            training started from.
        facts: of the run.
    """
    start, end = checks[0], checks[-1]
    comparable = [check for check in checks if check["step"] >= facts.comparable_from]
    comparable = comparable if len(comparable) > 1 else list(checks)
    loss, of_map = _loss(comparable, facts), _map(checks)
    losses = {**start, "check_loss": comparable[0]["check_loss"]}
    by_images, image_reasons = _by_images(losses, end, loss, facts)
    by_labels, label_reasons = _by_labels(start, end, facts)
    learned, reasons = (by_images, [*image_reasons, *label_reasons])
    if by_labels == "barely" and by_images == "no":
        by_labels = None
        reasons[-1] += ": such a gain may be chance, and the images decide"
    if by_labels is not None:
        learned, reasons = by_labels, [*label_reasons, *image_reasons]
    reasons += _loss_reasons(loss, losses, end, facts) + _map_reasons(of_map, end, facts)
    numbers = {name.removeprefix("check_"): end[name] for name in end if name.startswith(("check_", "mining"))}
    numbers |= {f"start_{name.removeprefix('check_')}": start[name] for name in start if name.startswith("check_")}
    collapsed = end.get("check_rankme", math.inf) < max(COLLAPSED, SHRUNK * start.get("check_rankme", 0.0))
    tried = suggestions(learned, loss, of_map, end, facts, collapsed=collapsed)
    alike = start.get("check_variation", 1.0) < ALIKE  # no setting helps then
    return Verdict(
        learned,
        tuple(reasons),
        numbers,
        () if alike else tried,
        loss,
        of_map,
        "images" if by_labels is None else "labels",
    )


def _by_labels(start: Mapping[str, Any], end: Mapping[str, Any], facts: Facts) -> tuple[Learned | None, list[str]]:
    """Judge by the accuracies of frozen features; None where there are no labels, or they tell nothing."""
    gains, parts = [], []
    chance = end.get("check_chance", 0.0)
    at_chance = no_room = True
    for name, title in (("check_linear_top1", "linear probe"), ("check_knn_top1", "k-NN")):
        if name not in start or name not in end:
            continue
        before, after, queries = start[name], end[name], end["check_queries"]
        error = math.sqrt(sum(max(p * (1 - p), 1 / queries) for p in (before, after)) / queries)
        of_chance = CHANCE_ERRORS * math.sqrt(max(chance * (1 - chance), 1 / queries) / queries)
        at_chance = at_chance and max(before, after) <= chance + of_chance
        no_room = no_room and 100 * (1 - min(before, after)) < CLEAR_POINTS
        gains.append((100 * (after - before), 100 * error))
        parts.append(f"{title} {100 * after:.1f} % after {100 * before:.1f} % {facts.start} ({gains[-1][0]:+.1f})")
    if not gains:
        return None, []
    if start.get("check_queries", end["check_queries"]) != end["check_queries"]:
        return None, [f"{', '.join(parts)}: not the same images, so that the images decide"]
    text = f"{', '.join(parts)}; sampling error {max(error for _, error in gains):.1f} points"
    if at_chance:
        largest = f"chance, {100 * chance:.1f} %"
        return None, [f"{text}: no better than {largest}, so the labels tell nothing and the images decide"]
    if no_room:
        return None, [f"{text}: labels that easy leave no room for a gain, and the images decide"]
    if any(gain >= CLEAR_POINTS and gain > CLEAR_ERRORS * error for gain, error in gains):
        worse = any(gain < -CLEAR_ERRORS * error for gain, error in gains)
        return "barely" if worse else "yes", [text]
    return "barely" if any(gain > SOME_ERRORS * error for gain, error in gains) else "no", [text]


def _by_images(start: Mapping[str, Any], end: Mapping[str, Any], loss: Loss, facts: Facts) -> tuple[Learned, list[str]]:
    """Judge without labels, by loss, effective rank and neighbors."""
    if start.get("check_variation", 1.0) < ALIKE:
        return "no", ["all images are the same, so there is nothing to learn; other images are needed"]
    reasons = [_loss_text(start, end, facts)]
    rank, kept = end.get("check_rankme", math.inf), end.get("check_start_neighbors")
    features = f"features use {rank:.1f} directions (RankMe), {start.get('check_rankme', math.nan):.1f} {facts.start}"
    if kept is not None:
        whose = "the start" if facts.initialized else "the untrained encoder"
        features += f"; {100 * kept:.0f} % of the nearest neighbors are still those of {whose}"
    if rank < COLLAPSED:
        return "no", [f"all features are alike: {features}", *reasons]
    reasons.append(features)
    if facts.initialized and (worse := getting_worse([start, end], facts)):
        return "no", [*worse.values(), *reasons]
    fall = 1 - end["check_loss"] / start["check_loss"]
    changed = kept is None or kept < SAME_NEIGHBORS
    mean_color, best = end.get("check_mean_color"), best_trivial(end)
    if facts.moving:
        return ("yes" if changed else "no"), reasons
    if mean_color is None or best is None:
        return ("no" if fall < FLAT_DROP else "yes" if changed and fall > 2 * FLAT_DROP else "barely"), reasons
    if loss == "flat" or end["check_loss"] > MEAN_COLOR * mean_color:
        return "no", reasons
    return ("yes" if changed and end["check_loss"] < best[1] else "barely"), reasons


def best_trivial(check: Mapping[str, Any]) -> tuple[str, float] | None:
    """Return name and loss of the best trivial predictor; None if the target is not pixels."""
    losses = {name: check[f"check_{name}"] for name in NAMES if f"check_{name}" in check}
    return min(losses.items(), key=lambda item: item[1]) if losses else None


def _loss_text(start: Mapping[str, Any], end: Mapping[str, Any], facts: Facts) -> str:
    of = "held-out images" if facts.held_out else "training images"
    first = "at first" if facts.initialized else facts.start
    text = f"loss of {of} {end['check_loss']:.3f} after {start['check_loss']:.3f} {first}"
    best = best_trivial(end)
    if facts.moving:
        return f"{text}; the target ({facts.target}) moves with the training, so the two cannot be compared"
    if best is None:
        return f"{text}; there is no trivial predictor of {facts.target}"
    relation = "below" if end["check_loss"] < best[1] else "above"
    if relation == "below" and end["check_loss"] > MEAN_COLOR * best[1]:
        relation = "no better than"
    text += f", {relation} the best trivial predictor's: "
    return text + ", ".join(f"{TEXT[name]} {end[f'check_{name}']:.3f}" for name in NAMES)


def _loss(checks: Sequence[Mapping[str, Any]], facts: Facts) -> Loss:
    """Tell the course of the loss."""
    losses = [check["check_loss"] for check in checks]
    start, end, lowest = losses[0], losses[-1], min(losses)
    if facts.held_out and "check_train_loss" in checks[-1]:
        train = checks[-1]["check_train_loss"]
        rises = end > (1 + RISE) * lowest and train < end
        if rises or train < (1 - GAP) * end:
            return "overfitting"
    color = checks[-1].get("check_mean_color")
    steps = [check["step"] for check in checks]
    late = [loss for step, loss in zip(steps, losses, strict=True) if step <= 2 * steps[-1] / 3][-1]
    at_color = color is not None and end > MEAN_COLOR * color and late - end < FLAT_DROP * end
    if not facts.moving and (start - end < FLAT_DROP * start or at_color):
        return "flat"
    return "falling" if late - end > FALLING * (start - end) else "settled"


def _loss_reasons(loss: Loss, start: Mapping[str, Any], end: Mapping[str, Any], facts: Facts) -> list[str]:
    texts = {
        "falling": "the loss is still falling: a longer run would go on learning",
        "settled": "the loss has settled",
        "flat": "the loss is flat",
        "overfitting": "the run overfits",
    }
    text = texts[loss]
    if loss == "flat" and start["check_loss"] - end["check_loss"] >= FLAT_DROP * start["check_loss"]:
        text = "the loss stays at that of the mean color"
    if "check_train_loss" in end:
        text += f" ({end['check_loss']:.3f} on held-out images, {end['check_train_loss']:.3f} on training images)"
    elif not facts.held_out:
        text += "; whether the run overfits was not measured, as no image was held out (data.hold_out)"
    return [text]


def _map(checks: Sequence[Mapping[str, Any]]) -> Map:
    if "check_map_correlation" not in checks[-1]:
        return "no map"
    kinds: dict[int, Map] = {-1: "upside down", 0: "at chance", 1: "upright"}
    return kinds[direction(checks[-1])]


def _map_reasons(of_map: Map, end: Mapping[str, Any], facts: Facts) -> list[str]:
    if of_map == "no map":
        return []
    text = f"the difficulty map is {of_map}: rank correlation with the true loss {end['check_map_correlation']:.2f}"
    if "check_masked_correlation" in end:
        text += f", {end['check_masked_correlation']:.2f} for predictions of masked patches"
    if end.get("mining_stopped"):
        text += "; mining was stopped"
    elif of_map == "upside down" and facts.mines:
        text += "; mining by it hides the easy patches"
    return [text]
