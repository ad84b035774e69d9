"""What going on from existing weights gives on own images: from scratch, from the start unchanged, and continued.

    python benchmarks/continuation.py --start RUN [RUN...] --data FOLDER [FOLDER...] --out DIR [--epochs 100]

``--data`` are images in class folders. Half of each class is trained on without labels. The other half never is: three
quarters of it are the labeled images of k-NN, linear probe and fine-tuning, the last quarter is what they are measured
on. Each RUN is the start of one seed. Its own configuration trains the two others: from random weights, and with
``--init RUN``, for as many epochs. ``OUT/results.jsonl`` has a line for each seed and arm; what is there is not run
again. At the end the table, as mean and standard deviation over the seeds.
"""

import argparse
import csv
import json
import statistics
from pathlib import Path
from typing import Any

import hardpatch
from hardpatch.evaluate.probes import knn, linear
from hardpatch.finetune.run import finetune

ARMS = ("from scratch", "start, unchanged", "continued")
METRICS = ("knn", "linear", "finetune")


def write_halves(folders: list[Path], out: Path) -> dict[str, str]:
    """Write the lists of images to train on, labeled ones, and those to measure on; returns their paths."""
    rows: dict[str, list[tuple[str, str]]] = {"unlabeled": [], "train": [], "test": []}
    classes = sorted({path.name for folder in folders for path in folder.iterdir() if path.is_dir()})
    for name in classes:
        files = sorted(file.resolve() for folder in folders for file in (folder / name).glob("*") if file.is_file())
        for number, file in enumerate(files):
            part = "unlabeled" if number % 2 == 0 else "test" if number % 8 == 7 else "train"
            rows[part].append((str(file), name))
    for part, lines in rows.items():
        with (out / f"{part}.csv").open("w", newline="") as table:
            csv.writer(table).writerows([("path", "label"), *lines])
    return {part: str(out / f"{part}.csv") for part in rows}


def pretrained(arm: str, start: Path, halves: dict[str, str], out: Path, seed: int, options: Any) -> Path:
    """Return the weights of an arm, after its training."""
    if arm == ARMS[1]:
        return start
    folder = out / f"seed_{seed}" / arm.replace(" ", "_")
    if (folder / "config.yaml").is_file():
        hardpatch.pretrain(out=folder, resume=True)
        return folder
    settings: dict[str, Any] = {"init": str(start)} if arm == ARMS[2] else {}
    settings |= {
        "verdict.images": options.checked,
        "knn.train": halves["train"],
        "knn.val": halves["test"],
        "knn.every_epochs": 1_000_000,
        **dict(pair.split("=", 1) for pair in options.setting),
    }
    hardpatch.pretrain(
        config=start / "config.yaml",
        data=halves["unlabeled"],
        out=folder,
        epochs=options.epochs,
        seed=seed,
        **settings,
    )
    return folder


def measured(weights: Path, halves: dict[str, str], out: Path, seed: int, steps: int) -> dict[str, float]:
    """Measure weights by k-NN, a linear probe and, for ``steps`` above 0, fine-tuning."""
    sets = halves["train"], halves["test"]
    first, second = knn(weights, *sets, cache=None).result, linear(weights, *sets, cache=None, seed=seed).result
    assert first is not None
    assert second is not None
    row = {"knn": first.top1, "linear": second.top1}
    if steps:
        tuned = finetune(weights, *sets, out=out, steps=steps, batch_size=64, seed=seed, lr=1e-3, warmup_epochs=0)
        row["finetune"] = tuned.top1
    return row


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--start", type=Path, nargs="+", required=True)
    parser.add_argument("--data", type=Path, nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=float, default=100)
    parser.add_argument("--checked", type=int, default=256, help="images of each check")
    parser.add_argument("--finetune_steps", type=int, default=0)
    parser.add_argument("--setting", nargs="*", default=[], metavar="NAME=VALUE", help="further ones of pretrain")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    halves, log = write_halves(options.data, options.out), options.out / "results.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    for seed, start in enumerate(options.start):
        for arm in ARMS:
            if any(row["seed"] == seed and row["arm"] == arm for row in rows):
                continue
            weights = pretrained(arm, start, halves, options.out, seed, options)
            tuned = options.out / f"seed_{seed}" / f"finetune_{ARMS.index(arm)}"
            row = {"seed": seed, "arm": arm, **measured(weights, halves, tuned, seed, options.finetune_steps)}
            rows.append(row)
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(row, flush=True)
    print("| arm | " + " | ".join(METRICS) + " |\n|---|" + "---|" * len(METRICS))
    for arm in ARMS:
        cells = []
        for metric in METRICS:
            values = [100 * row[metric] for row in rows if row["arm"] == arm and metric in row]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.1f}{spread}" if values else "not run")
        print(f"| {arm} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
