"""The one or two settings most worth trying after a run, each with its command."""

import math
import shlex
from collections.abc import Mapping
from typing import Any

from hardpatch.pretrain.facts import Facts

# Preliminary, as the thresholds of the verdict are.
MOST = 2
"""Suggestions at most."""
FEW_STEPS = 1000
"""Steps below which more of them are suggested first, by more epochs or smaller batches."""
UNCHANGED = 0.7
"""Share of the neighbors that are still the untrained encoder's above which a learning rate was too low."""
FACTOR = 4
"""Factor by which a learning rate is changed."""


def suggestions(
    learned: str, loss: str, of_map: str, end: Mapping[str, Any], facts: Facts, *, collapsed: bool
) -> tuple[tuple[str, str], ...]:
    """Return pairs of a reason and a command, the most promising one first."""
    found: list[tuple[str, str, dict[str, Any]]] = []
    kept = end.get("check_start_neighbors", 0.0)
    factor = max(2, math.ceil(FEW_STEPS / facts.steps))
    times = "twice" if factor == 2 else f"{factor} times"
    longer = (f"{times} the epochs", "longer", {"epochs": round(factor * facts.epochs, 2)})
    too_low = facts.lr < facts.usual_lr / FACTOR
    too_short = learned != "yes" and loss == "falling" and facts.steps < FEW_STEPS and not (collapsed or too_low)
    if of_map == "upside down" and facts.mines:
        if facts.can_remember:
            found.append(("mine by predictions of masked patches", "remember", {"fast.remember": "true"}))
        else:
            found.append(("train without mining", "random", {"method.alpha_start": 0, "method.alpha_end": 0}))
    if too_short:
        found.append(longer)
    elif learned != "yes" and collapsed:
        found.append(
            ("a lower learning rate, as the features lost most of their directions", "lower_lr", _lr(facts, 1 / FACTOR))
        )
    elif learned != "yes" and kept > UNCHANGED:
        found.append(("a higher learning rate, as little has changed", "higher_lr", _lr(facts, FACTOR)))
    if loss == "overfitting":
        half = {"epochs": round(facts.epochs / 2, 2)}
        found.append(("half the epochs (more images would be better still)", "shorter", half))
    elif learned != "yes" and collapsed:
        pass  # first of all it has to learn anything
    elif learned != "yes" and facts.steps < FEW_STEPS and facts.batch_size >= 2 * 16:
        smaller = {"batch_size": facts.batch_size // 2, "epochs": round(facts.epochs, 2), "optim.lr": facts.lr}
        found.append(("smaller batches, which give twice as many steps", "batch", smaller))
    elif (loss == "falling" or learned != "yes") and not too_short:
        found.append(longer)
    return tuple((why, _command(facts, name, settings)) for why, name, settings in found[:MOST])


def _lr(facts: Facts, factor: float) -> dict[str, Any]:
    """Return a rate changed by a factor, or a plan's rate where that is further away."""
    furthest = max if factor > 1 else min
    return {"optim.lr": float(f"{furthest(facts.lr * factor, facts.usual_lr):.2g}")}


def _command(facts: Facts, name: str, settings: Mapping[str, Any]) -> str:
    options = " ".join(f"--{setting} {value}" for setting, value in settings.items())
    config, out = (shlex.quote(f"{facts.folder}{end}") for end in ("/config.yaml", f"_{name}"))
    return f"hardpatch pretrain --config {config} {options} --out {out}"
