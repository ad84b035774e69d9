"""Several measurements of one run, on several data sets, as one table: a suite is a YAML file.

    - name: CIFAR-10
      verb: knn
      train: cifar10/train.parquet
      val: cifar10/test.parquet
    - name: CamVid
      verb: segment
      train: camvid/train
      val: camvid/val
      preset: small

Every other key is an argument of the verb, ``--key value``; ``true`` is a flag, a list several values.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hardpatch.errors import UserError, did_you_mean

NUMBERS: dict[str, dict[str, tuple[str, ...]]] = {
    "knn": {"k-NN top-1": ("top1",)},
    "linear": {"linear top-1": ("top1",), "linear top-5": ("top5",)},
    "finetune": {"fine-tuning top-1": ("top1",), "fine-tuning top-5": ("top5",)},
    "detect": {"AP box": ("box", "AP"), "AP mask": ("mask", "AP")},
    "segment": {"mIoU": ("miou",), "mean accuracy": ("mean_accuracy",)},
}
"""What goes into the table, by verb: the column, and where it stands in the verb's JSON."""

FILES = {"finetune": "accuracy.json", "detect": "result.json", "segment": "result.json"}
"""Verbs that train have a folder of their own, with this file in it; the others write the file they are told."""


@dataclass(frozen=True)
class Measurement:
    """One entry of a suite."""

    name: str
    verb: str
    arguments: tuple[str, ...]

    @property
    def key(self) -> str:
        """The name of its file or folder."""
        return "".join(c if c.isalnum() or c in "-." else "_" for c in f"{self.verb}-{self.name}")


def read_suite(path: str | Path) -> list[Measurement]:
    """The measurements of a suite file.

    Raises:
        UserError: naming the entry that is not one, in one line.
    """
    try:
        entries = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"--suite: cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--suite: {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(entries, list) or not entries:
        raise UserError(f"--suite: expected a list of measurements in {path}, got {type(entries).__name__}")
    suite = [_measurement(entry, number) for number, entry in enumerate(entries, 1)]
    seen: set[str] = set()
    for measurement in suite:
        if measurement.key in seen:
            raise UserError(f"--suite: {measurement.verb} {measurement.name!r} is there twice; give it another name")
        seen.add(measurement.key)
    return suite


def numbers_of(verb: str, content: dict[str, Any]) -> dict[str, float]:
    """The numbers of a verb's JSON that go into the table, by column; those that it lacks are left out."""
    found: dict[str, float] = {}
    for column, keys in NUMBERS[verb].items():
        value: Any = content
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            found[column] = float(value)
    return found


def markdown(run: str, results: list[tuple[Measurement, dict[str, float] | str]]) -> str:
    """The table: a row a measurement, in percent; what failed says why."""
    lines = [f"# {run}", "", "| data | measure | result |", "|---|---|---|"]
    for measurement, found in results:
        if isinstance(found, str):
            lines.append(f"| {measurement.name} | {measurement.verb} | failed: {found} |")
            continue
        lines += [f"| {measurement.name} | {column} | {100 * value:.2f} % |" for column, value in found.items()]
    return "\n".join(lines) + "\n"


def _measurement(entry: Any, number: int) -> Measurement:
    if not isinstance(entry, dict) or not {"name", "verb"} <= entry.keys():
        raise UserError(f"--suite: expected name and verb in entry {number}, got {entry!r}")
    rest = {str(key): value for key, value in entry.items() if key not in ("name", "verb")}
    verb = str(entry["verb"])
    if verb not in NUMBERS:
        raise UserError(
            f"--suite: expected one of {', '.join(NUMBERS)} as the verb of entry {number}, got {verb!r}"
            f"{did_you_mean(verb, list(NUMBERS))}"
        )
    taken = sorted({"out", "json", "resume"} & rest.keys())
    if taken:
        raise UserError(f"--suite: {taken[0]} of entry {number} is chosen by the suite; leave it out")
    arguments: list[str] = []
    for key, value in rest.items():
        if value is False or value is None:
            continue
        arguments.append(f"--{key}")
        if value is not True:
            arguments += [str(item) for item in (value if isinstance(value, list) else [value])]
    return Measurement(str(entry["name"]), verb, tuple(arguments))
