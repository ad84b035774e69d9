"""Which signs tell a run that learned from one that did not, over the runs of ``plan_rules.py``.

    python benchmarks/verdict_signs.py docs/results/plan_rules.jsonl

A run *learned* if k-NN or linear probe, on the whole validation set, gained at least three points over the untrained
encoder and more than two sampling errors; from one image, or from noise, no run did. The verdict does not see these
labels unless the training images are labeled, and then a small part of them. Runs on shuffled labels are left out.
Prints verdicts against that truth, and for each sign the area under the ROC curve: 1 separates perfectly, 0.5 is
chance, 0 separates perfectly the other way around.
"""

import argparse
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

from sklearn.metrics import roc_auc_score

TRIVIAL = ("mean_color", "blurred_neighbors", "nearest_patch")


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    runs = [json.loads(line) for line in parser.parse_args().file.read_text().splitlines()]
    runs = [run for run in runs if not run["set"].endswith("_shuffled")]
    truth = [learned(run) for run in runs]
    print("| verdict | learned | did not |\n|---|---|---|")
    counts = Counter(zip((run["verdict"] for run in runs), truth, strict=True))
    for word in ("yes", "barely", "no"):
        print(f"| {word} | {counts[word, True]} | {counts[word, False]} |")
    print("\n| sign | runs that have it: learned, did not | area |\n|---|---|---|")
    signs = [signs_of(run["signs"]) for run in runs]
    for name in sorted({name for each in signs for name in each}):
        known = [(each[name], true) for each, true in zip(signs, truth, strict=True) if name in each]
        values, true = zip(*known, strict=True)
        area = f"{roc_auc_score(true, values):.2f}" if len(set(true)) == 2 else "one kind only"
        print(f"| {name} | {sum(true)}, {len(true) - sum(true)} | {area} |")


def learned(run: dict[str, Any]) -> bool:
    """Whether one of both accuracies gained three points and more than two sampling errors."""
    return not run["set"].endswith(("_one_image", "_noise")) and any(
        after - before >= 0.03 and after - before > 2 * sampling_error(before, after, run["queries"])
        for before, after in (run["knn"], run["linear"])
    )


def sampling_error(before: float, after: float, queries: int) -> float:
    """Return the binomial error of a difference of two accuracies."""
    return math.sqrt((before * (1 - before) + after * (1 - after)) / queries)


def signs_of(numbers: dict[str, float]) -> dict[str, float]:
    """Return the signs of health that README, curves and verdict show, from the numbers at the end of a run."""
    names = {
        "pair_accuracy": "pair accuracy",
        "spearman": "rank correlation of a batch",
        "mined_loss_ratio": "mined over random loss (mined_loss_ratio)",
        "masked_correlation": "rank correlation, masked patches",
        "map_correlation": "rank correlation of the map that is mined by",
        "rankme": "RankMe",
        "start_neighbors": "neighbors of the untrained encoder that are kept",
        "reconstruction_loss": "training loss",
    }
    signs = {title: numbers[name] for name, title in names.items() if numbers.get(name) is not None}
    if "start_loss" in numbers:
        signs["held-out loss over that of the untrained"] = numbers["loss"] / numbers["start_loss"]
    if trivial := [numbers[name] for name in TRIVIAL if numbers.get(name) is not None]:
        signs["held-out loss over the best trivial predictor's"] = numbers["loss"] / min(trivial)
        signs["held-out loss over the mean color's"] = numbers["loss"] / numbers["mean_color"]
    if "start_rankme" in numbers:
        signs["RankMe over the untrained encoder's"] = numbers["rankme"] / numbers["start_rankme"]
    return signs


if __name__ == "__main__":
    main()
