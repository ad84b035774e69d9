"""Read a suite, a YAML file with several measurements of one run, and format the results as one table.

    - name: CIFAR-10
      verb: knn
      train: cifar10/train.parquet
      val: cifar10/test.parquet
    - name: CamVid
      verb: segment
      train: camvid/train
      val: camvid/val
      preset: small

Every other key is an option of the verb: ``key: value`` becomes ``--key value``, ``true`` a flag, a list several
values. ``false`` leaves a flag out; where an option can be on by itself, it turns it off.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardpatch.errors import UserError, did_you_mean, shown
from hardpatch.paths import user_path
from hardpatch.yaml_text import check_keys, read_yaml

COLUMNS: dict[str, dict[str, tuple[str, ...]]] = {
    "knn": {"k-NN top-1": ("top1",)},
    "linear": {"linear top-1": ("top1",), "linear top-5": ("top5",)},
    "finetune": {"fine-tuning top-1": ("top1",), "fine-tuning top-5": ("top5",)},
    "detect": {"AP box": ("box", "AP"), "AP mask": ("mask", "AP")},
    "segment": {"mIoU": ("miou",), "mean accuracy": ("mean_accuracy",)},
}
"""Columns of the table by verb, and the keys that lead to each value in the verb's JSON."""

TRAINING_VERBS = ("finetune", "detect", "segment")
"""Verbs that train in a folder of their own, with ``result.json``; the others write the file that --json names, except
for linear with the protocol paper."""

TABLES = ("knn", "linear", "finetune")
"""Verbs that read tables, whose columns may be named."""

IMAGES = ("train", "val")
"""Options that are repeated for several paths."""

ON_OR_OFF = (
    *("photometric", "reduce_zero_label", "relative_positions", "layer_scale", "train_positions"),
    "background_saving",
)
"""Options that can be on without being on the command line; ``false`` becomes ``--no-OPTION``."""


@dataclass(frozen=True)
class Measurement:
    """One entry of a suite."""

    name: str
    verb: str
    arguments: tuple[str, ...]

    @property
    def trains(self) -> bool:
        """True if it trains in a folder of its own."""
        paper = ("--protocol", "paper")
        return self.verb in TRAINING_VERBS or paper in zip(self.arguments, self.arguments[1:], strict=False)

    @property
    def key(self) -> str:
        """Name of its file or folder."""
        return "".join(c if c.isalnum() or c in "-." else "_" for c in f"{self.verb}-{self.name}")


def read_suite(path: str | Path, columns: Mapping[str, str | None] | None = None) -> list[Measurement]:
    """Read the measurements of a suite file.

    Args:
        path: the file.
        columns: options of columns for the entries that have none, of verbs that read tables.

    Raises:
        UserError: names the entry that is not valid.
    """
    entries = read_yaml(user_path(path, "--suite"), "--suite")
    if not isinstance(entries, list) or not entries:
        raise UserError(f"--suite: expected a list of measurements in {path}, got {type(entries).__name__}")
    check_keys(entries, f"--suite: {path}")
    suite = [_measurement(entry, number, columns or {}) for number, entry in enumerate(entries, 1)]
    keys: set[str] = set()
    for measurement in suite:
        if measurement.key in keys:
            raise UserError(f"--suite: {measurement.verb} {measurement.name!r} occurs twice; rename one of them")
        keys.add(measurement.key)
    return suite


def table_values(verb: str, content: dict[str, Any]) -> dict[str, float]:
    """Return the values of a verb's JSON that go into the table, by column; missing ones are left out."""
    values: dict[str, float] = {}
    for column, keys in COLUMNS[verb].items():
        value: Any = content
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            values[column] = float(value)
    return values


def markdown(run: str, results: list[tuple[Measurement, dict[str, float] | str]]) -> str:
    """Format the table, a row for each value, in percent; a measurement that failed has its reason instead."""
    lines = [f"# {run}", "", "| data | measure | result |", "|---|---|---|"]
    for measurement, values in results:
        if isinstance(values, str):
            lines.append(f"| {measurement.name} | {measurement.verb} | failed: {values} |")
            continue
        lines += [f"| {measurement.name} | {column} | {100 * value:.2f} % |" for column, value in values.items()]
    return "\n".join(lines) + "\n"


def _measurement(entry: Any, number: int, columns: Mapping[str, str | None]) -> Measurement:
    if not isinstance(entry, dict) or not {"name", "verb"} <= entry.keys():
        raise UserError(f"--suite: expected name and verb in entry {number}, got {shown(entry)}")
    options = {str(key): value for key, value in entry.items() if key not in ("name", "verb")}
    verb = str(entry["verb"])
    if verb not in COLUMNS:
        raise UserError(
            f"--suite: expected one of {', '.join(COLUMNS)} as the verb of entry {number}, got {shown(repr(verb))}"
            f"{did_you_mean(verb, list(COLUMNS))}"
        )
    if verb in TABLES:
        options = {**columns, **options}
    reserved = sorted({"out", "json", "resume"} & options.keys())
    if reserved:
        raise UserError(f"--suite: {reserved[0]} of entry {number} is set by hardpatch evaluate; leave it out")
    arguments: list[str] = []
    for key, value in options.items():
        if value is None or (value is False and key not in ON_OR_OFF):
            continue
        if value is False:
            arguments.append(f"--no-{key}")
            continue
        values = [] if value is True else [str(item) for item in (value if isinstance(value, list) else [value])]
        if key in IMAGES:
            arguments += [part for path in values for part in (f"--{key}", path)]
        else:
            arguments += [f"--{key}", *values]
    return Measurement(str(entry["name"]), verb, tuple(arguments))
