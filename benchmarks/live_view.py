"""What the live view costs a training: CPU seconds with it over CPU seconds of a quiet one.

    python benchmarks/live_view.py [--steps N --repeats N]

Trains the recipe demo in a terminal, in turns with the live view, with plain lines and quietly. The seconds are those
of the whole process on all cores, start included: other work on the machine changes them less than a clock's.
"""

import argparse
import resource
import statistics
import tempfile
from pathlib import Path

from tests.terminal import Terminal

DISPLAYS = {"live view": "auto", "plain lines": "plain", "quiet": "quiet"}
BARE = ("--train.pictures", "0", "--train.report", "no", "--verdict.checks", "0", "--train.log_every", "1")


def cpu_seconds(display: str, steps: int, folder: Path) -> float:
    """Return the CPU seconds of a training in a process of its own."""
    train = ("-m", "hardpatch", "pretrain", "--recipe", "demo", "--steps", str(steps), *BARE)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    terminal = Terminal([*train, "--display", display, "--out", str(folder)])
    terminal.read(seconds=3600)
    if terminal.process.wait():
        raise SystemExit(f"{display}: the training failed\n{terminal.text}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in DISPLAYS}
    for repeat in range(options.repeats):
        for name in DISPLAYS if repeat % 2 == 0 else reversed(DISPLAYS):  # back and forth
            with tempfile.TemporaryDirectory() as folder:
                seconds[name].append(cpu_seconds(DISPLAYS[name], options.steps, Path(folder) / "run"))
    print("| display | CPU seconds | over quiet, median (range) |\n|---|---|---|")
    for name, values in seconds.items():
        ratios = [value / quiet for value, quiet in zip(values, seconds["quiet"], strict=True)]
        spread = f"{statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        print(f"| {name} | {statistics.median(values):.1f} | {spread} |")


if __name__ == "__main__":
    main()
