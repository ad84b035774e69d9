"""Signs, in plain words, that a training makes the weights worse that it started from; most need no labels."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hardpatch.pretrain.facts import Facts

# Set on few runs, see docs/continue.md: a healthy continuation kept 80 % of the neighbors and all of RankMe; one at 100
# times the rate was at 0.3 to 0.44 of the neighbors and 0.5 to 0.74 of RankMe when k-NN had fallen.
LOST_RANK = 0.5
"""Share of the start's RankMe, beyond the one direction that all features have, below which they collapse."""
KEPT_NEIGHBORS = 0.4
"""Share of the start's nearest neighbors below which what the weights knew is said to be lost."""
WORSE_LOSS = 1.1
"""Factor of the lowest loss above which the loss is said to rise."""
WORSE_POINTS, WORSE_ERRORS = 3.0, 2.0
"""Points, and sampling errors, by which an accuracy has to fall."""


def getting_worse(checks: Sequence[Mapping[str, Any]], facts: Facts) -> dict[str, str]:
    """Tell what has become worse at the last of some checks, in plain words by topic; needs no labels.

    Args:
        checks: in the order of their steps; the first is that of the weights that the training started from.
        facts: of the run.
    """
    start, now, found = checks[0], checks[-1], {}
    rank, before = now.get("check_rankme"), start.get("check_rankme")
    if rank is not None and before is not None and rank - 1 < LOST_RANK * (before - 1):
        found["rank"] = (
            f"the features collapse: they use {rank:.1f} directions (RankMe) after {before:.1f} at the start; "
            "a lower rate (optim.lr, init.encoder_lr) keeps more"
        )
    kept = now.get("check_start_neighbors")
    if kept is not None and kept < KEPT_NEIGHBORS:
        found["neighbors"] = (
            f"what the weights knew of these images is being lost: {100 * kept:.0f} % of the nearest neighbors are "
            "still those of the start; a lower rate (optim.lr, init.encoder_lr) keeps more"
        )
    losses = [check["check_loss"] for check in checks if check["step"] >= facts.comparable_from]
    if len(losses) > 1 and not facts.moving and losses[-1] > WORSE_LOSS * min(losses):
        found["loss"] = f"the loss rises: {losses[-1]:.3f} after {min(losses):.3f}; a lower rate (optim.lr) may hold it"
    accuracy, at_start = now.get("check_knn_top1"), start.get("check_knn_top1")
    if accuracy is not None and at_start is not None:
        queries = now["check_queries"]
        error = math.sqrt(sum(max(p * (1 - p), 1 / queries) for p in (accuracy, at_start)) / queries)
        if at_start - accuracy > max(WORSE_POINTS / 100, WORSE_ERRORS * error):
            found["labels"] = f"k-NN fell to {accuracy:.1%} from {at_start:.1%} at the start"
    return found
