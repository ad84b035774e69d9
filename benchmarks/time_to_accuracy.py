"""Accuracy against training time and images seen: MAE, exact HPM and hpm_fast, in turns, on one machine.

    python benchmarks/time_to_accuracy.py --data TRAIN --val VAL --out DIR [--seeds 3] [--setting value ...]

Each method trains at scale ``cpu`` of ``hardpatch study`` (other settings as of ``hardpatch pretrain``). The three take
turns of ``--turn`` steps in one process with one thread, in alternating direction, so that a slow minute of the machine
slows all of them; only the seconds of their own steps count, loading included, as CPU seconds of the process. After a
turn, k-NN (k = 20, as in DINO) and a linear probe of 30 epochs are measured on frozen features of ``--probe`` images.

``OUT/points.jsonl`` has a line for each method, seed and turn; a seed that is complete there is not run again. At the
end the table: which share of MAE's time and images each needs for MAE's own final accuracy, and ``OUT/curves.png``.
"""

import argparse
import json
import statistics
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hardpatch.configuration.build import initial_model, target_of
from hardpatch.data.augment import EvalTransform
from hardpatch.data.loader import eval_batches
from hardpatch.data.memory import InMemorySource
from hardpatch.data.reading import RGB
from hardpatch.data.sources import Source, Subset, open_source
from hardpatch.measure.features import align_labels, extract
from hardpatch.measure.knn import knn_accuracy
from hardpatch.measure.linear import linear_probe
from hardpatch.pretrain.job import PretrainJob
from hardpatch.pretrain.step import Learner
from hardpatch.study import rows
from hardpatch.study.plan import NO_TABLE
from hardpatch.study.scales import SCALES, configure
from hardpatch.train.device import start_fabric

METHODS = {"MAE": "MAE", "HPM": "HPM over MAE", "hpm_fast": "HPM over MAE, hpm_fast"}
"""Methods by name, and their rows in the study ``hosts``."""


@dataclass
class Contestant:
    """A training and the CPU seconds of its steps so far."""

    job: PretrainJob
    batches: Any
    seconds: float = 0.0

    def train(self, steps: int) -> None:
        """Take up to ``steps`` steps and add their time."""
        start = time.process_time()
        for _ in range(min(steps, self.job.total - self.job.step)):
            self.job.train_step(next(self.batches), observe=False)
        self.seconds += time.process_time() - start


def start(name: str, seed: int, source: Source, settings: list[str], out: Path) -> Contestant:
    """Build the training of a method with its start weights."""
    row = next(row for row in rows.read("hosts").rows if row.name == METHODS[name])
    run = configure(NO_TABLE, row, SCALES["cpu"], data="images", settings=[*settings, "--seed", str(seed)])
    fabric = start_fabric(run.train.device, run.train.precision, "train.")
    target, outputs = target_of(run, fabric.device)
    assert isinstance(run.data.mean, (list, tuple))
    assert isinstance(run.data.std, (list, tuple))
    model = initial_model(run, run.data.mean, run.data.std, outputs)
    learner = Learner(run, model, fabric, run.total_steps(len(source)), target, len(source))
    job = PretrainJob(run, out, source, learner, outputs)
    return Contestant(job, job.batches())


def measure(contestant: Contestant, train: Source, val: Source) -> dict[str, float]:
    """Return k-NN and linear accuracy of the student's frozen features."""
    job = contestant.job
    classes, val_labels = align_labels(train, val)
    model = job.learner.model.eval()
    transform = EvalTransform(job.run.image_size)
    features = [
        extract(model, eval_batches(each, transform, batch_size=256, workers=0), device="cpu") for each in (train, val)
    ]
    model.train()
    features[1] = features[1]._replace(labels=val_labels[features[1].labels])
    generator = torch.Generator().manual_seed(0)
    knn = knn_accuracy(*features, classes=len(classes)).to_dict()
    linear = linear_probe(*features, classes=len(classes), generator=generator, epochs=30).to_dict()
    return {"knn": knn["dino"]["top1"], "linear": linear["top1"]}


def race(seed: int, options: argparse.Namespace, settings: list[str]) -> list[dict[str, Any]]:
    """Train the three in turns with one seed, and return their points."""
    source = InMemorySource(open_source(options.data), RGB)
    labeled, val = open_source(options.data), open_source(options.val)
    probe = Subset(labeled, range(0, len(labeled), max(1, len(labeled) // options.probe)))
    contestants = {name: start(name, seed, source, settings, options.out) for name in METHODS}
    points: list[dict[str, Any]] = []
    turn = 0
    while any(each.job.step < each.job.total for each in contestants.values()):
        for name in list(METHODS) if turn % 2 == 0 else list(METHODS)[::-1]:
            each = contestants[name]
            each.train(options.turn)
            seen = each.job.step * each.job.batch_size
            point = {"method": name, "seed": seed, "step": each.job.step, "images": seen, "seconds": each.seconds}
            points.append(point | measure(each, probe, val))
            print(json.dumps(points[-1]), flush=True)
        turn += 1
    for each in contestants.values():
        with closing(each.batches):
            pass
    return points


def needed(curve: list[dict[str, Any]], metric: str, level: float, axis: str) -> float | None:
    """Return where a curve first reaches a level, between points linearly; None if it never does."""
    before = {axis: 0.0, metric: 0.0}
    for point in curve:
        if point[metric] >= level:
            share = (level - before[metric]) / (point[metric] - before[metric]) if before[axis] else 1.0
            return before[axis] + max(0.0, share) * (point[axis] - before[axis])
        before = point
    return None


def table(points: list[dict[str, Any]]) -> str:
    """Format the shares of MAE's time and images that each method needs for MAE's final accuracy of the same seed."""
    seeds = sorted({point["seed"] for point in points})
    goals = [f"{axis} for MAE's {metric}" for axis in ("time", "images") for metric in ("k-NN", "linear")]
    lines = [f"| | seconds of a run | k-NN | linear | {' | '.join(goals)} |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    curves = {(m, s): [p for p in points if (p["method"], p["seed"]) == (m, s)] for m in METHODS for s in seeds}
    for name in METHODS:
        last = [curves[name, seed][-1] for seed in seeds]
        cells = [_spread([point["seconds"] for point in last], "{:.0f}")]
        cells += [_spread([100 * point[metric] for point in last], "{:.1f}") for metric in ("knn", "linear")]
        for axis in ("seconds", "images"):
            for metric in ("knn", "linear"):
                shares = []
                for seed in seeds:
                    goal = curves["MAE", seed][-1]
                    reached = needed(curves[name, seed], metric, goal[metric], axis)
                    if reached is not None:
                        shares.append(reached / goal[axis])
                never = "" if len(shares) == len(seeds) else f" ({len(seeds) - len(shares)} of {len(seeds)} never)"
                cells.append((_spread(shares, "{:.2f}") if shares else "") + never)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: list[float], form: str) -> str:
    deviation = f" ± {form.format(statistics.stdev(values))}" if len(values) > 1 else ""
    return form.format(statistics.fmean(values)) + deviation


def draw(points: list[dict[str, Any]], path: Path) -> None:
    """Draw accuracy against CPU seconds (top) and images seen (bottom); thin lines are seeds."""
    from matplotlib.figure import Figure

    from hardpatch.figures import FAINT, INK, LINES

    figure = Figure(figsize=(9, 6.4), dpi=110, facecolor="white", layout="constrained")
    grid = figure.subplots(2, 2)
    for row, (axis, label) in enumerate((("seconds", "CPU seconds of training"), ("images", "images seen"))):
        for column, (metric, title) in enumerate((("knn", "k-NN, k = 20"), ("linear", "linear probe"))):
            axes = grid[row, column]
            for color, name in zip(LINES, METHODS, strict=False):
                for number, seed in enumerate(sorted({point["seed"] for point in points})):
                    curve = [point for point in points if (point["method"], point["seed"]) == (name, seed)]
                    values = [100 * point[metric] for point in curve]
                    axes.plot([p[axis] for p in curve], values, color=color, label=name if number == 0 else None)
            axes.set_xlabel(label, color=INK, fontsize=9)
            axes.set_ylabel(f"{title}, %", color=INK, fontsize=9)
            axes.grid(color=FAINT)
    grid[0, 0].legend(frameon=False)
    figure.savefig(path)


def main() -> None:
    """Run the seeds that are missing, then print the table and draw the curves."""
    parser = argparse.ArgumentParser(description="Accuracy against time: MAE, HPM, hpm_fast.", allow_abbrev=False)
    parser.add_argument("--data", required=True)
    parser.add_argument("--val", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--turn", type=int, default=100, help="steps of a turn")
    parser.add_argument("--probe", type=int, default=5000, help="labeled images for k-NN and the linear probe")
    options, settings = parser.parse_known_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "points.jsonl"
    points = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    for seed in range(options.seeds):
        if not any(point["seed"] == seed for point in points):
            points += race(seed, options, settings)
            path.write_text("".join(json.dumps(point) + "\n" for point in points))
    print(table(points))
    draw(points, options.out / "curves.png")


if __name__ == "__main__":
    main()
