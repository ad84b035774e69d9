"""Choice of the way to read label files: the values that occur in them beside those that the user declared."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from hardpatch.errors import UserError
from hardpatch.segment.label_reading import UNKNOWN, LabelReading, by_color, by_value, color_text
from hardpatch.segment.labels import COLOR_TABLE, MAX_VALUE, Labels
from hardpatch.segment.survey import WHITE, Look

LISTED = 8
"""Values and colors that a message lists."""


class Seen(NamedTuple):
    """A label file and what it holds."""

    split: str
    path: Path
    look: Look


def decide(labels: Labels, seen: Sequence[Seen]) -> tuple[LabelReading, list[str]]:
    """Choose the reading under which every value of all label files is a class or ignored.

    Returns:
        The reading, and lines that say what was chosen.

    Raises:
        UserError: if there is none, with what was found and what to do.
    """
    colored = [entry for entry in seen if not entry.look.gray]
    if labels.threshold is not None:
        return _by_threshold(labels, seen, colored)
    if labels.colors and any(entry.look.kind in ("RGB", "palette") for entry in seen):
        reading = by_color(labels)
        _refuse_unknown(labels, reading, seen)
        return reading, ["label maps are read by their colors"]
    if colored:
        _refuse_colors(colored, len(seen))
    _refuse_other_palettes(seen)
    reading, said = _as_masks(labels, seen) or (by_value(labels), [])
    _refuse_unknown(labels, reading, seen)
    return reading, said


def codes(reading: LabelReading, look: Look) -> Iterator[tuple[int, int]]:
    """Yield each code of a file, as the reading counts them, and its pixels."""
    for value, count in look.counts.items():
        if reading.by == "color":
            shown = 255 * value if look.kind == "1-bit" else value
            wide = look.kind == "RGB" or not 0 <= shown <= 255  # a wide gray value is no color of any table
            yield look.colors.get(value, value if wide else shown * 0x010101), count
        else:
            yield value & 255 if look.kind == "RGB" else value, count


def _as_masks(labels: Labels, seen: Sequence[Seen]) -> tuple[LabelReading, list[str]] | None:
    """Read masks of 0 and 255 as two classes, although 255 is ignored in other sets; None if these are none."""
    if labels.values != (0, 1):
        return None
    reading = by_value(labels)
    plain = [entry for entry in seen if entry.look.kind != "1-bit"]  # their white is 1
    found = [(entry, {code for code, _ in codes(reading, entry.look)}) for entry in plain]
    values = {value for _, here in found for value in here}
    for white in WHITE:
        if white not in values or (labels.chosen and white in labels.ignored):
            continue
        if values <= {0, white}:
            said = (
                f"masks of 0 and {white}: {white} is read as {labels.names[1]!r} and not ignored; to ignore it, say "
                f"--ignore {white}"
            )
            return LabelReading("value", {0: 0, 1: 1, white: 1}), [said]
        ones = [entry for entry, here in found if 1 in here]
        whites = [entry for entry, here in found if white in here]
        if ones and not any(entry in ones for entry in whites):
            _refuse(
                whites[0],
                f"{whites[0].path} has the values 0 and {white}, {ones[0].path} 0 and 1, and no label map has both "
                f"{white} and 1: the class {labels.names[1]!r} seems to be 1 in {len(ones)} maps and {white} in "
                f"{len(whites)}; write one value in all, or if {white} is to be ignored, say --ignore {white}",
            )
    return None


def _by_threshold(labels: Labels, seen: Sequence[Seen], colored: Sequence[Seen]) -> tuple[LabelReading, list[str]]:
    assert labels.threshold is not None
    reading = LabelReading("value", {}, labels.threshold)
    for entry in seen:
        if entry in colored or any(len({c >> 16, c >> 8 & 255, c & 255}) > 1 for c in entry.look.colors.values()):
            _refuse(entry, f"--threshold: expected gray masks, {entry.path} has colors; {COLOR_TABLE}")
        if any(color & 255 != index for index, color in entry.look.colors.items()):
            _refuse(entry, f"--threshold: expected gray masks, {entry.path} has a palette; save it as gray")
    between = sum(
        count
        for entry in seen
        for code, count in codes(reading, entry.look)
        if entry.look.kind != "1-bit" and code not in (0, *WHITE)
    )
    total = sum(count for entry in seen for count in entry.look.counts.values())
    names, threshold = labels.names, labels.threshold
    return reading, [
        f"--threshold {threshold}: from {threshold} on a pixel is {names[1]}, below it is {names[0]}, none is ignored; "
        f"{between / total:.2%} of the pixels are neither 0 nor white"
    ]


def _refuse_colors(colored: Sequence[Seen], number: int) -> NoReturn:
    """Refuse RGB maps without a color table."""
    counts: Counter[int] = Counter()
    for entry in colored:
        counts.update(entry.look.counts)
    total = counts.total()
    listed = ", ".join(f"{color_text(code)} ({n / total:.1%})" for code, n in counts.most_common(LISTED))
    more = f" and {len(counts) - LISTED} more" if len(counts) > LISTED else ""
    many = "; so many colors are a sign of resampling or of a lossy format" if len(counts) > 256 else ""
    _refuse(
        colored[0],
        f"{len(colored)} of {number} label maps have colors, the first {colored[0].path}, and the classes have none; "
        f"found {listed}{more}{many}; expected {COLOR_TABLE}",
    )


def _refuse_other_palettes(seen: Sequence[Seen]) -> None:
    """Refuse palettes in which one index has two colors, or one color two indices."""
    color_of: dict[int, tuple[int, Seen]] = {}
    index_of: dict[int, tuple[int, Seen]] = {}
    for entry in seen:
        distinct = len(set(entry.look.colors.values())) == len(entry.look.colors)
        for index, color in entry.look.colors.items():
            other_color, other = color_of.setdefault(index, (color, entry))
            difference = f"index {index} is {color_text(other_color)} and {color_text(color)}"
            if other_color == color:
                other_index, other = index_of.setdefault(color, (index, entry)) if distinct else (index, entry)
                if other_index == index:
                    continue
                difference = f"the color {color_text(color)} is index {other_index} and {index}"
            _refuse(
                entry,
                f"the palettes of {other.path} and {entry.path} differ: {difference}; to read such maps by color, give "
                f"{COLOR_TABLE}",
            )


def _refuse_unknown(labels: Labels, reading: LabelReading, seen: Sequence[Seen]) -> None:
    """Refuse values that are no class and not ignored."""
    pixels: Counter[int] = Counter()
    files: defaultdict[int, list[Seen]] = defaultdict(list)
    for entry in seen:
        for code, count in codes(reading, entry.look):
            if reading.of(code, entry.look.kind) == UNKNOWN:
                pixels[code] += count
                files[code].append(entry)
    if not pixels:
        return
    affected = {entry.path: entry for entries in files.values() for entry in entries}
    first = next(iter(affected.values()))
    text = color_text if reading.by == "color" else str
    listed = ", ".join(f"{text(code)} in {count} pixels" for code, count in pixels.most_common(LISTED))
    more = f" and {len(pixels) - LISTED} more" if len(pixels) > LISTED else ""
    if reading.by == "color":
        expected = f"the {len(labels.colors)} colors of the classes"
    else:
        expected = f"the {len(labels.values)} classes {ranges(labels.values)} or, ignored, {ranges(labels.ignored)}"
    here = "has" if len(affected) == 1 else f"and {len(affected) - 1} other label maps have"
    _refuse(
        first,
        f"{first.path} {here} the {reading.by} {listed}{more}; expected {expected}; "
        f"{_way_out(labels, reading, {code for entry in seen for code, _ in codes(reading, entry.look)}, [*pixels])}",
    )


def _way_out(labels: Labels, reading: LabelReading, found: set[int], unknown: Sequence[int]) -> str:
    """Say what may be wrong with values that are no class, and what to do."""
    if reading.by == "color":
        return "add a line 'R G B name' for each to classes.txt, or correct them"
    classes = len(labels.names)
    if classes == 2 and len(unknown) > 1 and all(0 < code < 255 for code in unknown) and found & {255}:
        return (
            f"between 0 and 255 lie the edges of masks that were smoothed or saved as JPEG: with --threshold 128, "
            f"128 and more is {labels.names[1]!r}"
        )
    if classes == 2 and found <= {0, *unknown} and len(unknown) == 1 and 0 < unknown[0] <= MAX_VALUE:
        return f"for {unknown[0]} as {labels.names[1]!r}, write '0 {labels.names[0]}' and '{unknown[0]} " + (
            f"{labels.names[1]}' in classes.txt"
        )
    if labels.values == tuple(range(classes)) and [*unknown] == [classes]:
        return (
            f"if {classes} is the last class and 0 is {'to be ignored' if 0 in found else 'none'}, --reduce_zero_label"
        )
    if len(found) <= 16 and all(code % 17 == 0 for code in found):
        return (
            "multiples of 17 or 85 may be the ids 0, 1, 2, ... of gray PNGs of 4 or 2 bits, which decoders multiply; "
            "save them with 8 bits, or list the multiples in classes.txt"
        )
    if any(code >= 1000 for code in unknown):
        return (
            "values from 1000 on may be class * 1000 + instance, as Cityscapes' instanceIds; take the maps of class "
            "ids (labelIds), or list each value in classes.txt or after --ignore"
        )
    return "correct it, or see --classes and --ignore"


def _refuse(entry: Seen, reason: str) -> NoReturn:
    raise UserError(f"--{entry.split}: {reason}")


def ranges(values: Sequence[int]) -> str:
    """Write increasing numbers, with consecutive ones as "0 to 10"."""
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(f"{first} to {last}" if last > first else str(first) for first, last in runs) or "none"
