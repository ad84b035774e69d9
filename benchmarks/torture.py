"""Random `kill -9` of trainings, which are then resumed: the results have to be those of the run that was never killed.

    python benchmarks/torture.py [--kills 20] [--rows "pretrain HPM,segment"] [--seed 0] [--folder FOLDER]

Each row of the table is one command (`torture_rows.py`). It runs once undisturbed, and once with ``--kills`` kills: of
the process before its first step, between two checkpoints and while a checkpoint is written (when its hidden folder
appears), of a loader process, and of the second of two processes. Kinds and moments are drawn from ``--seed``; when the
scheduler lets a process be killed is chance. After a kill the run is resumed, as often as it takes. Weights (every
safetensors file) are compared byte by byte, metrics and results without times, and the images and the bytes of every
batch (`torture_record.py`). The exit code is 1 if something differs.

So that an attempt does not begin with seconds of imports, processes are forked from this one, which has imported all.
"""

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torture_process import Attempt
from torture_record import STEPS, each_image_once, last_of_each_step, read_records
from torture_rows import encoder_command, rows, write_data

START, BETWEEN, CHECKPOINT, WORKER, RANK = "before a step", "between checkpoints", "in a checkpoint", "worker", "rank 1"
HITS = (START, BETWEEN, CHECKPOINT, WORKER, RANK)
SHARES = {START: 2, BETWEEN: 6, CHECKPOINT: 8, WORKER: 4, RANK: 4}
"""How often each kind is drawn, relative to the others"""
MOST_STEPS = 5
"""Steps of an attempt before it is killed, at most"""


@dataclass
class Outcome:
    """A row of the table."""

    name: str
    hits: Counter[str] = field(default_factory=Counter)
    resumed: int = 0
    """times that the command had to be called again"""
    weights: bool = False
    metrics: bool = False
    images: bool | None = None
    notes: list[str] = field(default_factory=list)

    def line(self) -> str:
        """Return the row as Markdown."""
        same = [{True: "yes", False: "**no**", None: ""}[value] for value in (self.weights, self.metrics, self.images)]
        hits = [str(self.hits[kind]) if self.hits[kind] else "" for kind in HITS]
        return f"| {' | '.join([self.name, str(self.hits.total()), *hits, str(self.resumed), *same])} |"


HEAD = ["", "kills", *HITS, "resumed", "equal weights", "equal metrics", "each image once"]


def torture(name: str, command: list[str], folder: Path, kills: int, seed: int) -> Outcome:
    """Run a command undisturbed, then with kills, and compare."""
    outcome, chance = Outcome(name), random.Random(f"{seed} {name}")
    folder.mkdir(parents=True)
    whole, run = folder / "whole", folder / "run"
    began = time.monotonic()
    code = Attempt(command, folder, run).wait(600)
    seconds = time.monotonic() - began
    if code:
        raise SystemExit(f"{name}: the undisturbed run ended with exit code {code}, see {folder / 'output.txt'}")
    for path in (run, *folder.glob(STEPS.format("*"))):  # the second run has the same path, so that files are equal
        path.rename(folder / path.name.replace("run", "whole") if path == run else path.with_suffix(".whole"))
    recorded = bool(list(folder.glob("*.whole")))
    kinds = [kind for kind in SHARES if kind != RANK or "--devices" in command] if recorded else [START]
    attempts = []
    while outcome.hits.total() < kills:
        attempts.append(Attempt(_again(command, run), folder, run))
        if not _disturb(attempts[-1], kinds, kills, outcome, chance, seconds):
            break
    else:
        attempts.append(Attempt(_again(command, run), folder, run))
        if code := attempts[-1].wait(600):
            outcome.notes.append(f"the last call ended with exit code {code}")
    outcome.resumed = len(attempts) - 1
    if left := [pid for attempt in attempts for pid in attempt.orphans()]:
        outcome.notes.append(f"{len(left)} processes did not end after a kill of the first one")
    outcome.weights = _weights(whole, everything=not recorded) == _weights(run, everything=not recorded)
    outcome.metrics = _metrics(whole) == _metrics(run)
    if recorded:
        _compare_images(folder, outcome)
    return outcome


def _again(command: list[str], run: Path) -> list[str]:
    """Return the command that begins a run or goes on with it; verbs without --resume take the same one."""
    return [command[0], "--resume"] if (run / "config.yaml").is_file() else command


def _disturb(
    attempt: Attempt, kinds: list[str], kills: int, outcome: Outcome, chance: random.Random, seconds: float
) -> bool:
    """Kill parts of a run until it has ended. Returns False if it reached its end."""
    while outcome.hits.total() < kills:
        kind = chance.choices(kinds, [SHARES[kind] for kind in kinds])[0]
        steps = attempt.steps() + chance.randint(1, MOST_STEPS)
        if kind == START:
            attempt.sleep(chance.uniform(0, 1.0 if len(kinds) > 1 else seconds))
        else:
            attempt.until(lambda steps=steps: attempt.steps() >= steps)  # type: ignore[misc]
        if kind == CHECKPOINT:
            attempt.until(attempt.half_written, pause=0.0003)
        if kind in (BETWEEN, CHECKPOINT):
            time.sleep(chance.uniform(0, 0.03 if kind == BETWEEN else 0.01))
        if kind in (WORKER, RANK):
            victim = attempt.loaders() if kind == WORKER else attempt.other_ranks()
            if not victim or not attempt.kill(chance.choice(victim)):
                if attempt.ended():
                    break
                continue
            outcome.hits[kind] += 1
            if kind == WORKER:
                continue  # the run goes on with new loader processes
            if (code := attempt.wait(60)) != 1:
                outcome.notes.append(f"after a kill of rank 1 the run ended with exit code {code}")
            return True
        if attempt.kill(attempt.pid):
            attempt.wait(60)
            outcome.hits[_place(attempt)] += 1
            return True
        break
    code = attempt.wait(600)
    if code == 0:
        if outcome.hits.total() < kills:
            outcome.notes.append("the run ended before all kills")
    elif not outcome.hits[WORKER]:  # two dead loaders in one step end the run, which says so
        outcome.notes.append(f"the run ended with exit code {code} by itself")
    return code != 0


def _place(attempt: Attempt) -> str:
    """Return where a kill hit, by what it left."""
    if attempt.half_written():
        return CHECKPOINT
    return BETWEEN if attempt.steps() else START


def _weights(run: Path, *, everything: bool) -> dict[str, bytes]:
    suffixes = ("safetensors",) if not everything else ("*",)
    paths = [path for suffix in suffixes for path in run.rglob(f"*.{suffix}") if path.is_file()]
    return {str(path.relative_to(run)): path.read_bytes() for path in paths}


def _metrics(run: Path) -> dict[str, Any]:
    """Return metrics and results by file."""
    files = {path: path.read_text().splitlines() for path in run.rglob("metrics.jsonl")}
    content = {path: [json.loads(line) for line in lines] for path, lines in files.items()}
    for name in ("result.json", "measurements.json"):
        content |= {path: json.loads(path.read_text()) for path in run.rglob(name)}
    return {str(path.relative_to(run)): _without_times(value) for path, value in content.items()}


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_times(item) for name, item in value.items() if "second" not in name}
    return [_without_times(item) for item in value] if isinstance(value, list) else value


def _compare_images(folder: Path, outcome: Outcome) -> None:
    """Compare images and bytes of every batch, and say whether each image was seen once an epoch."""
    steps = last_of_each_step(read_records(folder))
    for path in folder.glob("*.whole"):
        path.rename(path.with_suffix(".jsonl"))
    outcome.images = steps == last_of_each_step(read_records(folder)) and each_image_once(steps)


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each row")
    parser.add_argument("--rows", help="names of rows, with commas; all without it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="for the runs, which are kept; a temporary one without it")
    options = parser.parse_args()
    torch.set_num_threads(1)  # a forked process waits forever for the other threads of OpenMP
    folder = options.folder or Path(tempfile.mkdtemp(prefix="torture_"))
    data = folder / "data"
    write_data(data)
    commands = rows(data, options.kills)
    names = list(commands) if options.rows is None else options.rows.split(",")
    unknown = [name for name in names if name not in commands]
    if unknown:
        parser.error(f"--rows: expected some of {', '.join(commands)}, got {', '.join(unknown)}")
    if Attempt(encoder_command(data)[:-2], folder, data / "encoder").wait(600):
        raise SystemExit(f"the encoder cannot be trained, see {folder / 'output.txt'}")
    outcomes = []
    for name in names:
        began = time.monotonic()
        where = folder / name.replace(" ", "_")
        outcomes.append(torture(name, commands[name], where, options.kills, options.seed))
        print(f"{name}: {time.monotonic() - began:.0f} s {'; '.join(outcomes[-1].notes)}", file=sys.stderr, flush=True)
    print("\n".join([f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}", *(each.line() for each in outcomes)]))
    if options.folder is None:
        shutil.rmtree(folder)
    return int(any(each.notes or not (each.weights and each.metrics and each.images is not False) for each in outcomes))


if __name__ == "__main__":
    sys.exit(main())
