"""Memory of a long pre-training with corrupt images in its folder, whose loader processes are killed again and again.

    python benchmarks/soak.py [--steps 5000] [--images 1000] [--kill_seconds 20] [--picture docs/soak.png]

One image in a hundred is cut off, changed or empty. A random loader process gets a SIGKILL every ``--kill_seconds``.
The resident memory of the main process, and of each loader process, is read from ``/proc`` once a second. The exit code
is 1 if the images that were skipped are not the corrupt ones, or the run does not end well.
"""

import argparse
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from hardpatch.train.metrics import read_metrics

MODEL = [
    *("--recipe", "demo", "--batch_size", "8", "--data.workers", "2", "--train.device", "cpu", "--model.depth", "2"),
    *("--model.width", "32", "--model.heads", "2", "--model.decoder_width", "16", "--model.decoder_depth", "1"),
    *("--model.decoder_heads", "2", "--train.log_every", "10", "--train.checkpoint_steps", "200"),
    *("--data.max_bad_fraction", "0.02", "--data.hold_out", "0", "--verdict.checks", "8"),
]


class Sample(NamedTuple):
    """Memory at a moment, in MB."""

    step: int
    main: float
    loaders: list[float]


def write_images(folder: Path, count: int) -> list[str]:
    """Write JPEGs of 64 x 64 px; returns the names of those that are corrupt, one in a hundred."""
    folder.mkdir()
    rng, corrupt = np.random.default_rng(0), []
    for number in range(count):
        path = folder / f"{number:05d}.jpg"
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(path)
        if number % 100 == 50:
            content = path.read_bytes()
            path.write_bytes((content[: len(content) // 3], b"", bytes(200))[number // 100 % 3])
            corrupt.append(path.name)
    return corrupt


def resident(pid: int) -> float:
    """Return the resident memory of a process in MB; 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:
        return 0.0


def loaders(pid: int) -> list[int]:
    """Return the child processes of a process."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def soak(command: list[str], out: Path, kill_seconds: float) -> tuple[list[int], int, list[Sample]]:
    """Run a command to its end, and resume it if it ends before. Returns steps of kills, restarts, and the memory."""
    chance, samples, kills, starts = random.Random(0), list[Sample](), list[int](), 0
    while True:
        starts += 1
        with (out.parent / "output.txt").open("a") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output)
        killed_at = time.monotonic()
        while process.poll() is None:
            time.sleep(1.0)
            rows = read_metrics(out / "metrics.jsonl")
            found = loaders(process.pid)
            if not rows or not found:
                continue
            memory = [size for size in map(resident, found) if size]
            samples.append(Sample(rows[-1]["step"], resident(process.pid), memory))
            if time.monotonic() - killed_at >= kill_seconds:
                killed_at = time.monotonic()
                kills.append(rows[-1]["step"])
                os.kill(chance.choice(found), signal.SIGKILL)
        if process.returncode == 0:
            return kills, starts - 1, [sample for sample in samples if sample.main]
        print(f"ended with exit code {process.returncode}; resumed", file=sys.stderr)
        command = [*command[:3], "pretrain", "--resume", "--out", str(out)]
        if starts > len(kills) + 1:
            raise SystemExit(f"the run ends by itself, see {out.parent / 'output.txt'}")


def describe(values: list[tuple[int, float]]) -> str:
    """Return medians of the first and last tenth of the steps, the largest value, and the slope of a line."""
    last = max(step for step, _ in values)
    first_tenth = statistics.median(value for step, value in values if step <= last * 0.1)
    last_tenth = statistics.median(value for step, value in values if step >= last * 0.9)
    later = [(step, value) for step, value in values if step >= last * 0.1]
    slope = statistics.linear_regression(*zip(*later, strict=True)).slope * 1000
    return f"{first_tenth:.0f} | {last_tenth:.0f} | {max(value for _, value in values):.0f} | {slope:+.2f}"


def draw(samples: list[Sample], kills: list[int], path: Path) -> None:
    """Draw the memory over the steps."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    steps = [sample.step for sample in samples]
    axes.plot(steps, [sample.main for sample in samples], label="main process", color="C0")
    points = [(sample.step, size) for sample in samples for size in sample.loaders]
    axes.scatter(
        [step for step, _ in points], [size for _, size in points], s=3, label="loader processes, each", color="C1"
    )
    axes.scatter(kills, [0] * len(kills), s=20, marker="|", label="a loader process is killed", color="black")
    most = max(sample.main for sample in samples)
    axes.set(xlabel="step", ylabel="resident memory (MB)", ylim=(-0.02 * most, 1.1 * most))
    figure.legend(loc="outside upper center", ncols=3)
    figure.savefig(path, dpi=100)


def main() -> int:
    """Print figures and draw the curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5000)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--kill_seconds", type=float, default=20.0)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak_"))
    corrupt = write_images(folder / "images", options.images)
    out = folder / "run"
    command = [sys.executable, "-m", "hardpatch", "pretrain", *MODEL, "--data", str(folder / "images")]
    command += ["--steps", str(options.steps), "--out", str(out)]
    began = time.monotonic()
    kills, restarts, samples = soak(command, out, options.kill_seconds)
    listed = (out / "undecodable.txt").read_text().splitlines()
    skipped = sorted(Path(line.partition(": ")[0]).name for line in listed)
    print(f"{options.steps} steps in {time.monotonic() - began:.0f} s, {len(kills)} loader processes killed,")
    print(f"the run resumed {restarts} times; {len(corrupt)} of {options.images} images corrupt,")
    print(f"{len(skipped)} skipped, the same: {skipped == corrupt}\n")
    print("| resident MB | first tenth | last tenth | most | MB in 1,000 steps |\n|---|---|---|---|---|")
    print("| main process |", describe([(sample.step, sample.main) for sample in samples]), "|")
    each = [(sample.step, max(sample.loaders)) for sample in samples if sample.loaders]
    print("| largest loader process |", describe(each), "|")
    if options.picture is not None:
        draw(samples, kills, options.picture)
    shutil.rmtree(folder)
    return int(skipped != corrupt)


if __name__ == "__main__":
    sys.exit(main())
