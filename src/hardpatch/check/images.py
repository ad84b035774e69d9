"""Findings about the images themselves: broken ones, pages, types, duplicates, classes."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from hardpatch.check.collect import Collected
from hardpatch.check.findings import Finding, Level
from hardpatch.choices import PagesName
from hardpatch.configuration.data_section import DataConfig
from hardpatch.data.names import some
from hardpatch.data.reading import type_range
from hardpatch.data.sources import Source

NARROW = 0.25
"""Share of the range of a type below which the greatest value is said to be small."""


class Balance(NamedTuple):
    """Images of each class that can be decoded."""

    counts: dict[str, int]
    unlabeled: int

    def filled(self) -> dict[str, int]:
        """Return the classes that have images."""
        return {name: count for name, count in self.counts.items() if count}


def balance_of(found: Collected, source: Source) -> Balance | None:
    """Count the images of each class; None if there are no classes."""
    if source.classes is None:
        return None
    labels = Counter(source.label(i) for i in range(len(source)) if i not in found.broken)
    return Balance({name: labels[k] for k, name in enumerate(source.classes)}, labels[None])


def image_findings(found: Collected, source: Source, data: DataConfig) -> list[Finding]:
    """Say what `pretrain` with these settings does with what was found in the images."""
    return [
        *_broken(found, data.max_bad_fraction),
        *_kinds(found, data.pages),
        *_types(found),
        *_values(found),
        *_duplicates(found, source),
    ]


def class_findings(balance: Balance | None, labels: bool, known: Sequence[Finding]) -> list[Finding]:
    """Say what about the classes is unusual.

    Args:
        balance: images of each class.
        labels: a training on labels is checked, and refused without classes.
        known: what was found before.
    """
    if balance is None:
        why = any(finding.kind == "stray_images" for finding in known)
        text = "the images have no labels; expected a folder for each class, or Parquet files with a column label"
        return [Finding("no_labels", text, level="refused")] if labels and not why else []
    findings = []
    without = [name for name, count in balance.counts.items() if not count]
    if without:
        text = f"{len(without)} classes without an image that can be read: {some(without)}"
        findings.append(Finding("classes_without_images", text, without, "warning"))
    wrong: Level = "refused" if labels else "warning"
    if len(balance.filled()) == 1 and not any(finding.kind == "one_class" for finding in known):
        name = next(iter(balance.filled()))
        findings.append(Finding("one_class", f"one class, {name!r}; expected two or more", [name], wrong))
    if balance.unlabeled:
        text = f"{balance.unlabeled} images have no label, beside others that have one"
        findings.append(Finding("unlabeled_images", text, level=wrong))
    return findings


def _broken(found: Collected, limit: float) -> list[Finding]:
    if not found.broken:
        return []
    count = len(found.broken)
    text = f"{count} of {found.total} images cannot be decoded ({count / found.total:.2%})"
    if count == found.total:
        text += "; none is left"
    elif count > limit * found.total:
        text += f"; at most {limit:.0%} may be: raise --data.max_bad_fraction to leave them out"
    else:
        text += "; training leaves them out"
    level: Level = "refused" if count > limit * found.total else "warning"
    return [Finding("broken", text, list(found.broken.values()), level)]


PAGES: dict[PagesName, str] = {
    "error": "they count as broken unless --data.pages is first, all or channels",
    "first": "the first is read",
    "all": "each is an image",
    "channels": "they are the channels of one image",
}
"""Treatment of files of several pages."""


def _kinds(found: Collected, pages: PagesName) -> list[Finding]:
    """Say what is unusual in how files are stored."""
    findings = []
    if found.paged:
        names, most = list(found.paged), max(found.paged.values())
        text = f"{len(names)} files have several pages or frames, up to {most} (the first: {names[0]}); {PAGES[pages]}"
        findings.append(Finding("pages", text, names, "warning" if pages == "error" else "note"))
    if found.survey.turned:
        text = f"{found.survey.turned} are stored turned and read upright by their EXIF (the first: {found.turned})"
        findings.append(Finding("turned", text, [found.turned]))
    if found.survey.transparent:
        text = (
            f"{found.survey.transparent} have transparency, shown on --data.background (the first: {found.transparent})"
        )
        findings.append(Finding("transparent", text, [found.transparent]))
    if found.survey.cut:
        text = f"{found.survey.cut} have more than 8 bits, of which the decoder gives 8 (the first: {found.cut})"
        findings.append(Finding("lost bits", text, [found.cut], "warning"))
    return findings


def _types(found: Collected) -> list[Finding]:
    """Say that the images differ in channels or depth. Other channels than gray and RGB together are refused."""
    findings = []
    channels, dtypes, examples = found.survey.channels, found.survey.dtypes, found.survey.examples
    if set(channels) == {1, 3}:
        counts = [f"{channels[number]} as {examples['channels', number]}" for number in (1, 3)]
        text = f"gray and color, {' and '.join(counts)}; gray is repeated for RGB"
        findings.append(Finding("mixed_channels", text))
    if len(dtypes) > 1:
        counts = [f"{count} of {dtype} as {examples['dtype', dtype]}" for dtype, count in dtypes.most_common()]
        text = f"the images have different types: {'; '.join(counts)}; each is brought to 0 to 1 by its range"
        findings.append(Finding("mixed_types", text, level="warning"))
    return findings


def _values(found: Collected) -> list[Finding]:
    """Say where the values fill a small part of their type, or are no numbers."""
    findings = []
    for dtype, extent in found.extents.items():
        _, top = type_range(dtype)
        if dtype != "float32" and extent.high < NARROW * top:
            way = "set --data.range" if dtype == "uint8" else "data.range auto measures it"
            text = (
                f"the greatest value of {extent.images} images of type {dtype} is {extent.high:g} of {top:g} "
                f"({extent.highest}); {way}"
            )
            findings.append(Finding("narrow_range", text, [extent.highest], "warning" if dtype == "uint8" else "note"))
    if found.missing:
        text = f"{found.missing} values are NaN or infinite and become the ends of the range: {found.not_finite}"
        findings.append(Finding("not_finite", text, [found.not_finite], "warning"))
    return findings


def duplicates(found: Collected) -> list[list[int]]:
    """Return the indices of images of the same content, those of each content together."""
    groups: dict[bytes, list[int]] = {}
    first: dict[bytes, int] = {}
    for i, digest in enumerate(found.digests):
        if digest and first.setdefault(digest, i) != i:
            groups.setdefault(digest, [first[digest]]).append(i)
    return list(groups.values())


def _duplicates(found: Collected, source: Source) -> list[Finding]:
    groups = duplicates(found)
    between = [group for group in groups if len({source.label(i) for i in group}) > 1]
    findings = []
    for kind, what, chosen in (
        ("duplicates", "more than once", groups),
        ("duplicates_between_classes", "in more than one class", between),
    ):
        if chosen:
            copies = sum(map(len, chosen)) - len(chosen)
            text = f"{len(chosen)} images are there {what}, {copies} copies"
            names = [" = ".join(source.name(i) for i in group) for group in chosen]
            findings.append(Finding(kind, text, names, "warning"))
    return findings
