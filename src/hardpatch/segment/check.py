"""Checks before training: every file is looked at, and what was found is said or refused."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from hardpatch.data.bad_files import BadFiles
from hardpatch.data.reading import RGB, Reading
from hardpatch.errors import UserError
from hardpatch.segment.data import SegmentationSet
from hardpatch.segment.decide import Seen, codes, decide
from hardpatch.segment.label_reading import LabelReading, color_text
from hardpatch.segment.labels import IGNORED, Labels
from hardpatch.segment.survey import WHITE, Look, Survey, survey

ROWS = 40
"""Classes in the table for the terminal."""
NAMED = 8
"""Classes that a line names."""


@dataclass
class Checked:
    """Sets that can be trained on and measured, by split."""

    sets: dict[str, SegmentationSet] = field(default_factory=dict)
    """without the pairs that cannot be read"""
    pixels: dict[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    """number of pixels of each class"""
    unreadable: dict[str, dict[int, str]] = field(default_factory=dict)
    """path and reason of each pair that cannot be read, by index"""
    said: list[str] = field(default_factory=list)
    """lines for the user"""
    warnings: list[str] = field(default_factory=list)
    """lines about what may be a mistake"""


def check_sets(
    sets: Mapping[str, SegmentationSet],
    reading: Reading = RGB,
    *,
    max_bad_fraction: float = 1.0,
    workers: int = 0,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> Checked:
    """Decode every image and label map once, and find how the values become classes.

    Args:
        sets: by split, the option that messages name, such as ``train`` and ``val``; all with the same labels.
        reading: channels, type and range of the images.
        max_bad_fraction: share of the pairs of a set that may be unreadable.
        workers: processes that decode; 0 decodes in this one.
        progress: called with the number of pairs done and of all.

    Raises:
        UserError: for too many unreadable pairs, sizes that differ, values that are no class, and where fewer than two
            classes have pixels to learn from.
    """
    surveys: dict[str, Survey] = {}
    total, earlier = sum(map(len, sets.values())), 0

    def count(done: int, _: int | None) -> None:
        progress(earlier + done, total)

    for split, pairs in sets.items():
        surveys[split] = survey(pairs, reading, workers, count)
        earlier += len(pairs)
        _refuse_unreadable(split, pairs, surveys[split], max_bad_fraction)
        _refuse_sizes(split, pairs, surveys[split])
    labels = next(iter(sets.values())).labels
    seen = [
        Seen(split, pairs.label_maps[i], surveys[split].looks[i])
        for split, pairs in sets.items()
        for i in surveys[split].looks
    ]
    label_reading, lines = decide(labels, seen)
    checked = Checked(said=list(labels.said))
    found: dict[str, Counter[int]] = {}
    for split, pairs in sets.items():
        checked.unreadable[split] = surveys[split].unreadable
        checked.sets[split] = pairs.without(surveys[split].unreadable, label_reading)
        found[split] = _pixels(label_reading, surveys[split].looks.values())
        checked.pixels[split] = np.array([found[split][k] for k in range(len(labels.names))], dtype=np.int64)
        checked.said += [f"--{split}: {line}" for line in (*pairs.said, _kinds(surveys[split]))]
        checked.warnings += [f"--{split}: {line}" for line in _orientation(surveys[split])]
    _refuse_empty(labels, label_reading, seen, checked)
    checked.said += [*lines, *_table(labels, label_reading, seen, found)]
    checked.warnings += _missing(labels, checked.pixels) + _same_images(checked.sets)
    return checked


def _refuse_unreadable(split: str, pairs: SegmentationSet, found: Survey, max_bad_fraction: float) -> None:
    if not found.looks:
        raise UserError(
            f"--{split}: none of the {len(pairs)} pairs can be read; the first: {next(iter(found.unreadable.values()))}"
        )
    try:
        bad_files = BadFiles(len(pairs), max_bad_fraction, "--max_bad_fraction", lambda line: None)
        bad_files.update(found.unreadable.values())
    except UserError as error:
        raise UserError(f"--{split}: {error}") from None


def _refuse_sizes(split: str, pairs: SegmentationSet, found: Survey) -> None:
    wrong = [i for i, look in found.looks.items() if look.mismatch]
    if wrong:
        first = wrong[0]
        raise UserError(
            f"--{split}: {len(wrong)} of {len(pairs)} label maps have another size than their image, the first: "
            f"{pairs.images[first]} and {pairs.label_maps[first]}: {found.looks[first].mismatch}"
        )


def _pixels(reading: LabelReading, looks: Iterable[Look]) -> Counter[int]:
    """Count the pixels of each class and of IGNORED."""
    counts: Counter[int] = Counter()
    for look in looks:
        for code, count in codes(reading, look):
            counts[reading.of(code, look.kind)] += count
    return counts


def _refuse_empty(labels: Labels, reading: LabelReading, seen: Sequence[Seen], checked: Checked) -> None:
    """Refuse sets with nothing to learn or to measure."""
    for split, pixels in checked.pixels.items():
        classes = np.flatnonzero(pixels).tolist()
        if len(classes) >= (2 if split == "train" else 1):
            continue
        counts: Counter[int] = Counter()
        for entry in seen:
            if entry.split == split:
                counts.update(dict(codes(reading, entry.look)))
        listed = [
            f"{_text(reading, code)}, {_name(labels, reading.of(code))} ({count / counts.total():.1%})"
            for code, count in counts.most_common(NAMED)
        ]
        got = f"only {labels.names[classes[0]]} has pixels" if classes else "every pixel is ignored"
        eaten = [code for code in WHITE if labels.chosen and code in counts and code in labels.ignored]
        way_out = f"leave {eaten[0]} out of --ignore" if eaten else "see --classes and --ignore"
        raise UserError(
            f"--{split}: {got} in the {len(checked.sets[split])} label maps, expected two classes or more; found the "
            f"{reading.by} {'; '.join(listed)}; {way_out}"
        )


def _kinds(found: Survey) -> str:
    """Say what kinds of label maps there are."""
    counts = Counter(
        "gray saved as RGB" if look.kind == "RGB" and look.gray else look.kind for look in found.looks.values()
    )
    return "label maps: " + ", ".join(f"{count} {kind}" for kind, count in counts.items())


def _orientation(found: Survey) -> list[str]:
    turned = sum(look.orientation > 1 for look in found.looks.values())
    text = f"{turned} images have an EXIF orientation; their label maps have to be drawn on the upright images"
    return [text] if turned else []


def _table(labels: Labels, reading: LabelReading, seen: Sequence[Seen], found: Mapping[str, Counter[int]]) -> list[str]:
    """Write the values and the share of the pixels of each class in each set."""
    present = {code for entry in seen for code, _ in codes(reading, entry.look)}
    palette = {} if reading.by == "color" else {k: c for entry in seen for k, c in entry.look.colors.items()}

    def row(number: int) -> str:
        shares = "  ".join(f"{split} {counts[number] / counts.total():7.2%}" for split, counts in found.items())
        values = [code for code, of in reading.classes.items() if of == number]
        shown = sorted(present.intersection(values)) or values[:1]
        texts = [
            _text(reading, code) + (f" ({color_text(palette[code])})" if code in palette else "") for code in shown
        ]
        if reading.threshold is not None:
            texts = [f"{'from' if number else 'below'} {reading.threshold}"]
        return f"{reading.by} {', '.join(texts)} -> {_name(labels, number)}: {shares}"

    classes = [*range(len(labels.names))]
    rows = [row(number) for number in classes[:ROWS]]
    if classes[ROWS:]:
        shares = [f"{split} {sum(n[k] for k in classes[ROWS:]) / n.total():7.2%}" for split, n in found.items()]
        rows.append(f"{len(classes) - ROWS} more classes: {'  '.join(shares)}")
    ignored = any(counts[IGNORED] for counts in found.values())
    return [*rows, row(IGNORED) if ignored else "no pixel is ignored"]


def _missing(labels: Labels, pixels: Mapping[str, npt.NDArray[np.int64]]) -> list[str]:
    """Name the classes that a set lacks."""
    lines = []
    absent = {split: [k for k, count in enumerate(counts) if not count] for split, counts in pixels.items()}
    for split, classes in absent.items():
        effect = "not learned" if split == "train" else "not measured unless predicted"
        if classes:
            lines.append(f"--{split}: {len(classes)} classes without a pixel, {effect}: {_names(labels, classes)}")
    unknown = [k for k in absent.get("train", []) if k not in absent.get("val", absent.get("train", []))]
    if unknown:
        lines.append(f"--val: has pixels of classes that --train lacks, IoU 0: {_names(labels, unknown)}")
    return lines


def _same_images(sets: Mapping[str, SegmentationSet]) -> list[str]:
    """Say how many images are in both sets."""
    files = [{image.resolve() for image in pairs.images} for pairs in sets.values()]
    same = len(set.intersection(*files)) if len(files) > 1 else 0
    text = f"{same} of the {len(files[-1])} images of --val are in --train, too: the measures are too good for them"
    return [text] if same else []


def _name(labels: Labels, number: int) -> str:
    return "ignored" if number == IGNORED else labels.names[number]


def _names(labels: Labels, classes: Sequence[int]) -> str:
    more = f" and {len(classes) - NAMED} more" if len(classes) > NAMED else ""
    return ", ".join(labels.names[k] for k in classes[:NAMED]) + more


def _text(reading: LabelReading, code: int) -> str:
    return color_text(code) if reading.by == "color" else str(code)
