"""Keep the measurements of a study's runs in one file of ``docs/results``, and lay them out for a study again.

    python benchmarks/study_results.py collect STUDY docs/results/cifar10.json
    python benchmarks/study_results.py lay_out STUDY docs/results/cifar10.json

``collect`` adds the runs of the folder STUDY that the file does not have. ``lay_out`` writes those of the file into
STUDY, so that ``hardpatch study ... --out STUDY`` trains only the others. They have no weights: a table that needs
them, as Table D does, trains its runs again; leave these out with ``--but RUN``. A new file is written by hand:
``{"scale": ..., "data": ..., "runs": {}}``.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RESULT = "measurements.json"
FROM_FILE = "from"
"""Mark of measurements that were laid out, with the file's name."""


def main() -> None:
    """Collect measurements, or lay them out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("collect", "lay_out"))
    parser.add_argument("study", type=Path)
    parser.add_argument("file", type=Path)
    parser.add_argument("--but", nargs="*", default=(), metavar="RUN", help="runs that are not laid out")
    options = parser.parse_args()
    content = json.loads(options.file.read_text())
    if options.action == "lay_out":
        lay_out(content["runs"], options.study, options.file.name, options.but)
    else:
        for run, seed in collect(content["runs"], options.study):
            print(f"{run}, seed {seed}: added")
        options.file.write_text(text(content))


def collect(runs: dict[str, list[dict[str, Any]]], study: Path) -> list[tuple[str, int]]:
    """Add what a study measured to ``runs``, in place; returns the runs and seeds that are new."""
    added = []
    for path in sorted((study / "runs").glob(f"*/seed_*/{RESULT}")):
        measured = json.loads(path.read_text())
        if FROM_FILE in measured or not set(measured["metrics"]) - {"speedup"}:  # a step was timed, nothing trained yet
            continue
        seeds = runs.setdefault(path.parts[-3], [])
        known = next((each for each in seeds if each["seed"] == measured["seed"]), None)
        if known is None:
            seeds.append({"seed": measured["seed"], "metrics": measured["metrics"]})
            added.append((path.parts[-3], measured["seed"]))
        else:  # a table that came later may have measured more of it
            known["metrics"] = measured["metrics"] | known["metrics"]
        seeds.sort(key=lambda each: each["seed"])
    return added


def lay_out(runs: dict[str, list[dict[str, Any]]], study: Path, name: str, but: Sequence[str]) -> None:
    """Write the measurements of ``runs`` into the folders of a study, other than those that it has."""
    for run, seeds in runs.items():
        for each in seeds:
            path = study / "runs" / run / f"seed_{each['seed']}" / RESULT
            if run in but or path.exists():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            details: dict[str, Any] = {metric: {} for metric in each["metrics"]}
            path.write_text(
                json.dumps({"metrics": each["metrics"], "details": details, "seconds": {}, FROM_FILE: name})
            )


def text(content: dict[str, Any]) -> str:
    """Return the file's text: runs in order, a line for each seed, six digits."""
    rows = []
    for run, seeds in sorted(content["runs"].items()):
        lines = [json.dumps(each | {"metrics": rounded(each["metrics"])}) for each in seeds]
        rows.append(f"    {json.dumps(run)}: [\n      " + ",\n      ".join(lines) + "\n    ]")
    head = "".join(f"  {json.dumps(key)}: {json.dumps(value)},\n" for key, value in content.items() if key != "runs")
    return f'{{\n{head}  "runs": {{\n' + ",\n".join(rows) + "\n  }\n}\n"


def rounded(metrics: dict[str, float]) -> dict[str, float]:
    """Return the values with six digits."""
    return {name: float(f"{value:.6g}") for name, value in metrics.items()}


if __name__ == "__main__":
    main()
