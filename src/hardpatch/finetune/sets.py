"""Training and validation set of a fine-tuning, with classes or targets; without the second a part is held out."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from hardpatch.data.bands import as_read
from hardpatch.data.columns import Columns
from hardpatch.data.reading import Reading
from hardpatch.data.sources import OpenedSource, Paths, Source, Subset, open_source
from hardpatch.data.splits import Role
from hardpatch.data.summary import summarize
from hardpatch.data.targets import Numbered, TargetTable, read_targets
from hardpatch.errors import UserError
from hardpatch.finetune.probe import hold_out
from hardpatch.finetune.settings import FinetuneSettings
from hardpatch.measure.features import align_labels


@dataclass
class Sets:
    """Images to learn from and images to evaluate on."""

    train: Source
    val: Source
    classes: tuple[str, ...]
    """names of the classes, or of the targets"""
    val_labels: Tensor
    """int64, index in ``classes`` of each label of ``val``"""
    tables: tuple[TargetTable, TargetTable] | None = None
    """targets of both, for tasks of several labels or numbers an image; the labels of the sources are rows of them"""
    lines: list[str] = field(default_factory=list)
    """what both are, in words"""

    regression: bool = False

    @property
    def units(self) -> tuple[list[float], list[float]] | None:
        """Mean and standard deviation of each target over the training images, for a regression; else None."""
        if self.tables is None or not self.regression:
            return None
        rows = self.tables[0].values[_rows(self.train)].double()
        return rows.mean(dim=0).tolist(), rows.std(dim=0, correction=0).tolist()


def open_labeled_set(role: Role, path: Paths, columns: Columns) -> OpenedSource:
    """Open one of the sets; messages begin with its option."""
    try:
        return open_source(path, columns, role)
    except UserError as error:
        raise UserError(f"--{role}: {error}") from None


def open_sets(inputs: Mapping[str, Any], run: FinetuneSettings) -> Sets:
    """Open the sets of a run.

    Args:
        inputs: ``train``, ``val``, ``image_column``, ``label_column`` and ``target_columns``.
        run: the settings.

    Raises:
        UserError: if a set cannot be read, or its labels do not suit the task.
    """
    several = run.task != "classes"
    columns = Columns(inputs["image_column"], inputs["label_column"])
    if inputs.get("target_columns") and not several:
        raise UserError("--target_columns: expected with --task multilabel or regression, the task is classes")
    opened: dict[Role, OpenedSource] = {}
    roles: tuple[Role, Role] = ("train", "val")
    for role in roles:
        path = inputs[role]
        if path is not None:  # a column of lists or numbers is no column of classes
            opened[role] = open_labeled_set(role, path, columns._replace(label=None) if several else columns)
    lines = [f"--{role}: {_summary(source, run)}" for role, source in opened.items()]
    train, val = opened["train"], opened.get("val", opened["train"])
    if not several:
        classes, val_labels = align_labels(train, val)
        sets = Sets(train, val, classes, val_labels, lines=lines)
    else:
        tables = _read_tables(opened, columns, inputs.get("target_columns") or (), run)
        names = tables[0].names
        labels = torch.arange(len(names))
        sets = Sets(Numbered(train), Numbered(val), names, labels, tables, lines, run.task == "regression")
    return sets if "val" in opened else _held_out(sets, run)


def read_as(sets: Sets, reading: Reading) -> Sets:
    """Return the images of the sets as a network reads them: bands put together, or pages apart."""
    return replace(sets, train=_as_read(sets.train, reading), val=_as_read(sets.val, reading))


def _as_read(source: Source, reading: Reading) -> Source:
    if not isinstance(source, Subset | Numbered):
        return as_read(cast(OpenedSource, source), reading)
    if reading.bands or reading.pages == "all":
        raise UserError(
            "RUN: was trained on images of several files or pages; expected --val and one class an image: no part of "
            "such images is held out, and no table has a row for each"
        )
    return source


def _summary(source: OpenedSource, run: FinetuneSettings) -> str:
    return summarize(source) if run.task == "classes" else f"{len(source)} images"


def _read_tables(
    opened: Mapping[Role, OpenedSource], columns: Columns, names: list[str] | tuple[str, ...], run: FinetuneSettings
) -> tuple[TargetTable, TargetTable]:
    """Read the targets of both sets, which have to be of the same classes or columns."""
    found: dict[Role, TargetTable] = {}
    for role, source in opened.items():
        known = found["train"].names if role == "val" and len(names) < 2 and run.task == "multilabel" else ()
        try:
            found[role] = read_targets(source, run.task, columns, names, known)
        except UserError as error:
            raise UserError(str(error) if str(error).startswith("--") else f"--{role}: {error}") from None
    train, val = found["train"], found.get("val", found["train"])
    if train.names != val.names:
        raise UserError(f"--val: expected the targets {', '.join(train.names)}, got {', '.join(val.names)}")
    constant = [name for k, name in enumerate(train.names) if bool((train.values[:, k] == train.values[0, k]).all())]
    if constant and run.task == "regression":
        raise UserError(f"--train: expected targets that vary, {constant[0]!r} is the same in all images")
    if len(constant) == len(train.names):
        raise UserError("--train: every image has the same labels; there is nothing to learn")
    return train, val


def _held_out(sets: Sets, run: FinetuneSettings) -> Sets:
    """Split a part of the training set off, the same one for the same seed, to evaluate on."""
    images = len(sets.train)
    if sets.tables is None:
        labels = [label for label in (sets.train.label(i) for i in range(images)) if label is not None]
        kept, held = hold_out(labels, run.val_share, run.seed)
        of_each = ", of every class the same share"
    else:
        order = np.random.default_rng(run.seed).permutation(images)
        count = min(max(1, round(run.val_share * images)), images - 1)
        held, kept, of_each = sorted(order[:count].tolist()), sorted(order[count:].tolist()), ""
    if not kept or not held:
        raise UserError(
            f"--val: expected labeled images, or two images of --train or more to hold one out, got {images}"
        )
    sets.lines.append(
        f"no --val: {len(held):,} of the {images:,} images of --train are held out to evaluate on, drawn by the seed "
        f"{run.seed}{of_each}; {len(kept):,} are left to learn from"
    )
    tables = None if sets.tables is None else (sets.tables[0], sets.tables[0])
    return replace(sets, train=Subset(sets.train, kept), val=Subset(sets.train, held), tables=tables)


def _rows(source: Source) -> list[int]:
    return [label for label in (source.label(i) for i in range(len(source))) if label is not None]
