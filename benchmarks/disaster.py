"""Tells which measure notices first that far too high a rate destroys weights: losses, features or labels.

    python benchmarks/disaster.py --start RUN [RUN...] --halves DIR --out DIR [--lr 0.1] [--steps 36]

``--halves`` is the folder of ``benchmarks/continuation.py`` with its lists of images. Each RUN is the start of one
seed. Its own configuration goes on with ``--init RUN`` at the rate ``--lr`` for 25 epochs; it is checked after every
one of the first ``--steps`` steps, labels included, and is stopped then. Printed are the warnings of each seed, and
what was measured at these steps.
"""

import argparse
import os
import signal
from pathlib import Path
from typing import Any

import hardpatch
from hardpatch.pretrain import job
from hardpatch.train.metrics import read_metrics

EPOCHS, CHECKED = 25, 256
"""Length of the training, on which the warm-up of the rate rests; images that a check looks at."""
SHOWN = {"loss": "check_loss", "RankMe": "check_rankme", "neighbors": "check_start_neighbors", "k-NN": "check_knn_top1"}


def check_every_step(steps: int) -> None:
    """Check a training after each of its first steps, and interrupt it after the last of them."""
    evaluate = job.PretrainJob.evaluate

    def evaluate_and_stop(self: job.PretrainJob) -> Any:
        found = evaluate(self)
        if self.step >= steps:
            os.kill(os.getpid(), signal.SIGINT)
        return found

    job.check_steps = lambda run, total: frozenset({*range(steps + 1), total})  # type: ignore[attr-defined]
    job.PretrainJob.evaluate = evaluate_and_stop  # type: ignore[method-assign]


def main() -> None:
    """Train, and print what was noticed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--start", type=Path, nargs="+", required=True)
    parser.add_argument("--halves", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--steps", type=int, default=36)
    options = parser.parse_args()
    check_every_step(options.steps)
    for seed, start in enumerate(options.start):
        folder = options.out / f"seed_{seed}"
        settings: dict[str, Any] = {
            "optim.lr": options.lr,
            "verdict.checks": options.steps,  # above 0: the start may have been trained without
            "verdict.images": CHECKED,
            "knn.train": str(options.halves / "train.csv"),
            "knn.val": str(options.halves / "test.csv"),
            "knn.every_epochs": 1_000_000,
        }
        hardpatch.pretrain(
            config=start / "config.yaml",
            data=str(options.halves / "unlabeled.csv"),
            out=folder,
            epochs=EPOCHS,
            seed=seed,
            init=str(start),
            **settings,
        )
        print(f"seed {seed}")
        for line in (folder / "log.txt").read_text().splitlines():
            if "WARNING step" in line:
                print(f"  {line.split('WARNING ')[1]}")
        for row in read_metrics(folder / "metrics.jsonl"):
            if "check_loss" in row:
                values = "  ".join(f"{name} {row[key]:.3f}" for name, key in SHOWN.items() if key in row)
                print(f"  step {row['step']:2d}  {values}")


if __name__ == "__main__":
    main()
