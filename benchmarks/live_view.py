"""What the live view costs a training: images/s with it over images/s of a quiet one.

    python benchmarks/live_view.py [--steps N --repeats N]

Trains the recipe demo in a terminal, in turns with the live view, with plain lines and quietly. A run's speed is the
median of the images/s that it logs, every five steps, which is how often the view's numbers change here.
"""

import argparse
import statistics
import tempfile
from pathlib import Path

from hardpatch.train.metrics import read_metrics
from tests.terminal import Terminal

DISPLAYS = {"live view": "auto", "plain lines": "plain", "quiet": "quiet"}
BARE = ("--train.pictures", "0", "--train.report", "no", "--verdict.checks", "0", "--train.log_every", "5")


def images_per_second(display: str, steps: int, folder: Path) -> float:
    """Return the median speed of a training of its own."""
    train = ("-m", "hardpatch", "pretrain", "--recipe", "demo", "--steps", str(steps), *BARE)
    terminal = Terminal([*train, "--display", display, "--out", str(folder)])
    terminal.read(seconds=3600)
    rows = [row["images_per_second"] for row in read_metrics(folder / "metrics.jsonl") if "images_per_second" in row]
    if len(rows) < steps // 5:
        raise SystemExit(f"{display}: the training ended early\n{terminal.text}")
    return statistics.median(rows[1:])


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    speeds: dict[str, list[float]] = {name: [] for name in DISPLAYS}
    for repeat in range(options.repeats):
        for name in DISPLAYS if repeat % 2 == 0 else reversed(DISPLAYS):  # back and forth
            with tempfile.TemporaryDirectory() as folder:
                speeds[name].append(images_per_second(DISPLAYS[name], options.steps, Path(folder) / "run"))
    print("| display | images/s | over quiet, median (range) |\n|---|---|---|")
    for name, values in speeds.items():
        ratios = [value / quiet for value, quiet in zip(values, speeds["quiet"], strict=True)]
        spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        print(f"| {name} | {statistics.median(values):.0f} | {spread} |")


if __name__ == "__main__":
    main()
