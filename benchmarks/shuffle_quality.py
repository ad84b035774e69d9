"""How far the order by row groups is from a uniform shuffle, on files that are sorted by class and on mixed ones.

    python benchmarks/shuffle_quality.py

Prints, for windows of several sizes, the rank correlation of the place in an epoch with the place in the file (its mean
size over epochs), the classes in a batch, and the share of pairs of images in a batch that come from one row group.
"""

import argparse
import itertools

import numpy as np
from scipy.stats import spearmanr

from hardpatch.data.order import TrainingOrder
from hardpatch.data.row_groups import RowGroups

EPOCHS = 20


def measure(labels: np.ndarray, group: int, batch: int, window: int | None) -> list[str]:
    """Return the figures of one order; None is the uniform shuffle."""
    n = len(labels)
    ends = np.minimum(np.arange(group, n + group, group), n)
    groups = None if window is None else RowGroups(ends, window)
    steps = EPOCHS * n // batch
    batches = [rows[:, 1] for rows in itertools.islice(TrainingOrder(n, batch, 0, 0, 0, 1, groups), steps)]
    stream = np.concatenate(batches)
    epochs = [stream[k * n : (k + 1) * n] for k in range(len(stream) // n)]
    correlation = np.mean([abs(spearmanr(np.arange(n), epoch).statistic) for epoch in epochs])
    classes = np.mean([len(np.unique(labels[rows])) for rows in batches])
    pairs = [(np.bincount(rows // group) ** 2).sum() - len(rows) for rows in batches]
    together = np.mean(pairs) / (batch * (batch - 1))
    return [f"{correlation:.3f}", f"{classes:.1f}", f"{together:.2%}"]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--group", type=int, default=500)
    parser.add_argument("--batch", type=int, default=256)
    options = parser.parse_args()
    by_class = np.repeat(np.arange(options.classes), options.images // options.classes)
    mixed = np.random.default_rng(0).permutation(by_class)
    print("| order | rank correlation | classes in a batch, sorted file | mixed file | pairs from one group |")
    print("|---|---|---|---|---|")
    for window in (1, 8, 32, 64, None):
        correlation, classes, together = measure(by_class, options.group, options.batch, window)
        other = measure(mixed, options.group, options.batch, window)[1]
        name = "all images shuffled" if window is None else f"window {window}"
        print(f"| {name} | {correlation} | {classes} | {other} | {together} |", flush=True)


if __name__ == "__main__":
    main()
