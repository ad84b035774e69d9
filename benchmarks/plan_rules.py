"""Search for the rules of ``hardpatch plan``, and the evidence for them: many arms on many sets, at equal time.

    python benchmarks/plan_rules.py --set NAME=TRAIN,VAL ... --images 3000 --hours 0.17 --out DIR --arms auto lr_2e-3

TRAIN and VAL are labeled sets, as ``hardpatch knn`` takes them. From TRAIN, ``--images`` are taken evenly (all of them
without it). Each arm is ``hardpatch pretrain`` on them with the options of :data:`ARMS`, then k-NN and linear accuracy
on VAL with TRAIN's subset as the labeled images, of the trained and of the untrained encoder. A training lasts
``--hours``, or with ``--seen`` the CPU time in which the plan sees so many images: the speed of a machine that others
use changes by more than arms differ, the CPU seconds of an image hardly do.

A run is one process with ``--threads`` threads; ``--jobs`` run at a time. What was measured is a line of the file
``--keep``; a run that has one is not made again. ``--planted`` adds sets that nothing can be learned from. At the end a
table of all that is in the file, as Markdown. ``verdict_signs.py`` reads the same file.
"""

import argparse
import io
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from hardpatch.data.order import evenly_spread
from hardpatch.data.sources import Source, open_source

SMALL = (
    "--data.image_size 64 --model.patch_size 8 --model.width 128 --model.depth 4 --model.heads 4 "
    "--model.decoder_width 64 --model.decoder_depth 2 --model.decoder_heads 4"
)
EXACT = "--fast.remember false --fast.shared_blocks 0 --fast.prediction_ratio 1"
OF_RECIPE = "--recipe demo --data.image_size 64 --model.patch_size 8"

ARMS = {
    "auto": "",
    "mae": "--method.predicting_loss none",
    "exact": EXACT,
    "exact_one_block": f"{EXACT} --model.decoder_depth 1",  # its map may come out upside down
    # what someone would have taken before there were plans
    "demo": f"{OF_RECIPE} --batch_size 64",
    "tiny_imagenet_small": "--recipe tiny_imagenet_small",
    # one choice changed
    **{f"batch_{size}": f"--batch_size {size}" for size in (16, 32, 64, 128, 256)},
    **{f"lr_{lr}": f"--optim.lr {lr}" for lr in ("1e-5", "2.5e-4", "5e-4", "1e-3", "2e-3", "4e-3", "1e-1")},
    **{f"width_{width}": f"--model.width {width}" for width in (96, 128, 192, 256, 384)},
    **{f"depth_{depth}": f"--model.depth {depth}" for depth in (2, 4, 6, 8, 12)},
    **{f"decoder_depth_{depth}": f"--model.decoder_depth {depth}" for depth in (1, 2, 4)},
    **{f"decoder_width_{width}": f"--model.decoder_width {width}" for width in (32, 64, 128)},
    **{f"mask_{ratio}": f"--method.mask_ratio {ratio}" for ratio in (0.5, 0.6, 0.75, 0.85)},
    **{f"side_{side}": f"--data.image_size {side}" for side in (32, 48, 64, 96, 128)},
    **{f"patch_{patch}": f"--data.image_size 64 --model.patch_size {patch}" for patch in (4, 8, 16)},
    **{f"crop_{low}": f"--data.crop_scale [{low},1]" for low in (0.08, 0.2, 0.4, 0.6)},
    **{f"decay_{decay}": f"--optim.weight_decay {decay}" for decay in (0.0, 0.05, 0.2)},
    **{f"warmup_{share}": f"--optim.warmup {share}" for share in (0.0, 0.05, 0.15)},
    **{f"momentum_{m}": f"--fast.remember false --method.momentum_start {m}" for m in (0.9, 0.99, 0.999)},
    "normalized": "--method.target normalized_pixels",
    "alpha_0": "--method.alpha_end 0",
}
"""Options of ``hardpatch pretrain`` by the name of an arm."""


KEEPING = Lock()
"""While a line is written."""
SHORT = (2000, 8000)
"""Images of two trainings whose CPU time tells how long one image takes."""
SAME_COST = ("--optim.", "--data.crop_scale", "--method.target", "--method.alpha_end", "--method.momentum_start")
"""Settings that do not change how long an image takes."""
NO_CHECKS = "--verdict.checks 0 --train.report no --train.pictures 0"
PLANTED = ("one_image", "noise", "shuffled")
"""Faults of a set: one image repeated, noise, labels that belong to other images."""


class Setup(argparse.Namespace):
    """Command line of this script."""

    sets: list[str]
    images: int | None
    hours: float
    seen: int | None
    arms: list[str]
    seeds: int
    threads: int
    jobs: int
    out: Path
    keep: Path
    planted: bool


def subset(source: str, images: int | None, file: Path) -> str:
    """Write evenly spaced images of a labeled set as Parquet, and return its path; all images are the set itself."""
    if images is None:
        return source
    opened = open_source(source)
    if not file.exists():
        write_set(file, opened, evenly_spread(len(opened), images))
    return str(file)


def write_set(file: Path, source: Source, chosen: list[int], plant: str | None = None) -> None:
    """Write some images of a labeled set as Parquet, with a fault of :data:`PLANTED` if there shall be one."""
    rng = np.random.default_rng(0)
    assert source.classes is not None
    labels = [source.classes[label] for i in chosen if (label := source.label(i)) is not None]
    encoded = [source.encoded(i) for i in chosen]
    if plant == "one_image":
        encoded = encoded[:1] * len(chosen)
    elif plant == "noise":
        sizes = [source.image(i).shape for i in chosen]
        encoded = [png(rng.integers(0, 256, size, dtype=np.uint8)) for size in sizes]
    elif plant == "shuffled":
        rng.shuffle(labels)
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": [{"bytes": data, "path": None} for data in encoded], "label": labels}), file)


def png(pixels: npt.NDArray[np.uint8]) -> bytes:
    """Encode an image."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def hardpatch(arguments: str, threads: int, output: Path | None = None) -> float:
    """Run the command line in a process and return its CPU seconds; raises RuntimeError with its last words.

    What it prints goes to the file ``output``, if one is given.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    command = [sys.executable, "-m", "hardpatch", *shlex.split(arguments)]
    with tempfile.TemporaryFile("w+") as said, output.open("w") if output else nullcontext(said) as printed:
        process = subprocess.Popen(command, env=environment, stdout=printed, stderr=said)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"{arguments}: {said.read()[-500:]}")
    return usage.ru_utime + usage.ru_stime


def seconds_per_image(setup: Setup, folder: Path, train: str, arm: str) -> float:
    """Return the CPU seconds for which an arm trains on an image, measured once and kept in the arm's folder."""
    assert setup.seen is not None
    kept = folder / arm / "seconds_per_image.json"
    if not kept.exists():
        images, spent = len(open_source(train)), []
        kept.parent.mkdir(parents=True, exist_ok=True)
        config = kept.with_name("planned.yaml")  # of the whole length: a plan of few epochs mines in another way
        plan = f"plan {train} {ARMS[arm]} --epochs {setup.seen / images:.4g} --print_config"
        hardpatch(plan, setup.threads, config)
        for seen in SHORT:
            with tempfile.TemporaryDirectory() as out:
                options = f"--config {config} --epochs {seen / images:.4g} {NO_CHECKS} --out {out}/run"
                spent.append(hardpatch(f"pretrain --data {train} {options}", setup.threads))
        kept.write_text(json.dumps((spent[1] - spent[0]) / (SHORT[1] - SHORT[0])))
    return float(json.loads(kept.read_text()))


def length(setup: Setup, folder: Path, train: str, arm: str) -> str:
    """Return the option that sets the length of an arm's trainings."""
    if setup.seen is None:
        return f"--hours {setup.hours}"
    same = all(word.startswith(SAME_COST) for word in ARMS[arm].split() if word.startswith("--"))
    seen = float(setup.seen)
    if not same:
        seen *= seconds_per_image(setup, folder, train, "auto") / seconds_per_image(setup, folder, train, arm)
    return f"--epochs {seen / len(open_source(train)):.4g}"


def measure(setup: Setup, folder: Path, train: str, val: str, arm: str, seed: int) -> None:
    """Train and measure one arm with one seed, and keep the numbers."""
    key = {"set": folder.name, "arm": arm, "seed": seed, "threads": setup.threads}
    if any(key.items() <= run.items() for run in read(setup.keep)):
        return
    out = folder / arm / f"seed_{seed}"
    run = out / "run"
    how = f"--data {train} {length(setup, folder, train, arm)} {ARMS[arm]} --seed {seed}"
    how = "--resume" if (run / "config.yaml").exists() else how
    hardpatch(f"pretrain {how} --out {run}", setup.threads)
    labeled = f"{run} --train {train} --val {val} --random_baseline"
    hardpatch(f"knn {labeled} --json {out / 'knn.json'}", setup.threads)
    hardpatch(f"linear {labeled} --json {out / 'linear.json'}", setup.threads)
    result = json.loads((run / "result.json").read_text())
    verdict = result.get("verdict") or {"learned": "none", "numbers": {}}  # of a run without checks
    measured = key | {
        "hours": None if setup.seen else setup.hours,
        "queries": len(open_source(val)),
        "verdict": verdict["learned"],
    }
    measured |= {"steps": result["steps"], "seconds": round(result["seconds"])}
    for verb in ("knn", "linear"):
        accuracy = json.loads((out / f"{verb}.json").read_text())
        measured[verb] = [accuracy["random"]["top1"], accuracy["top1"]]  # untrained, trained
    signs = result["metrics"] | verdict["numbers"]  # which has the last check's, too
    measured["signs"] = {name: value for name, value in signs.items() if not name.startswith("check_")}
    with KEEPING, setup.keep.open("a") as file:
        file.write(json.dumps(rounded(measured)) + "\n")
    print(f"{folder.name} {arm} seed {seed}: {summary([measured])}", flush=True)


def read(file: Path) -> list[dict[str, Any]]:
    """Return the runs that were kept."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def rounded(value: Any) -> Any:
    """Return a value with all its numbers to five digits."""
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def summary(runs: list[dict[str, Any]]) -> str:
    """Return k-NN and linear accuracy, untrained and trained, and verdicts, as cells of a table."""
    cells = []
    for verb in ("knn", "linear"):
        for trained in (0, 1):
            values = [100 * run[verb][trained] for run in runs]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.fmean(values):.1f}{spread}")
    words = ", ".join(run["verdict"] for run in runs)
    return " | ".join([*cells, words, str(round(statistics.fmean(run["steps"] for run in runs)))])


def table(runs: list[dict[str, Any]]) -> str:
    """Return runs as Markdown, those of one arm on one set in a line."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        groups[run["set"], run["arm"]].append(run)
    lines = [
        "| set, images, budget | arm | seeds | k-NN untrained | k-NN | linear untrained | linear | learned | steps |",
        "|---|---|---|---|---|---|---|---|---|",
        *(f"| {name} | {arm} | {len(group)} | {summary(group)} |" for (name, arm), group in sorted(groups.items())),
    ]
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", dest="sets", metavar="NAME=TRAIN,VAL", nargs="+", default=[], help="labeled sets")
    parser.add_argument("--images", type=int, help="images of TRAIN (default: all)")
    parser.add_argument("--hours", type=float, default=1 / 6, help="time of each run (default: 10 minutes)")
    parser.add_argument("--seen", type=int, help="images that the plan sees, in place of --hours")
    parser.add_argument(
        "--arms", nargs="+", default=["auto", "mae"], choices=ARMS, metavar="ARM", help=f"{', '.join(ARMS)}"
    )
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0 to K - 1 (default: 1)")
    parser.add_argument("--threads", type=int, default=1, help="of each run (default: 1)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default: 2)")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--keep", type=Path, default=Path("docs/results/plan_rules.jsonl"), help="measured numbers")
    parser.add_argument("--planted", action="store_true", help="also each set with faults planted, by the arm auto")
    setup = parser.parse_args(namespace=Setup())
    setup.keep.parent.mkdir(parents=True, exist_ok=True)
    tasks = []
    for entry in setup.sets:
        name, paths = entry.split("=", 1)
        train, val = paths.split(",")
        budget = f"{setup.seen // 1000}k" if setup.seen else f"{setup.hours:.3g}h"
        folder = setup.out / f"{name}_{setup.images or 'all'}_{budget}"
        part = subset(train, setup.images, setup.out / "sets" / f"{name}_{setup.images}.parquet")
        tasks += [(folder, part, val, arm, seed) for seed in range(setup.seeds) for arm in setup.arms]
        for plant in PLANTED if setup.planted else ():
            opened, file = open_source(part), setup.out / "sets" / f"{name}_{setup.images}_{plant}.parquet"
            if not file.exists():
                write_set(file, opened, list(range(len(opened))), plant)
            planted = setup.out / f"{folder.name}_{plant}"
            tasks += [(planted, str(file), val, "auto", seed) for seed in range(setup.seeds)]
    with ThreadPoolExecutor(setup.jobs) as pool:
        for future in [pool.submit(measure, setup, *task) for task in tasks]:
            try:
                future.result()
            except RuntimeError as error:
                print(error, file=sys.stderr, flush=True)
    print(table(read(setup.keep)))


if __name__ == "__main__":
    main()
