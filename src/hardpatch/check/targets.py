"""Annotations of objects and label maps beside the images, looked at as `detect` and `segment` look at them."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from hardpatch.check.findings import Finding, Level
from hardpatch.data.reading import Reading
from hardpatch.errors import UserError

Count = Callable[[int, int | None], None]


def annotation_findings(
    folder: Path, path: str, reading: Reading, limit: float, threads: int, count: Count
) -> list[Finding]:
    """Read annotations of the images of a folder, and compare the sizes of the images with them."""
    from hardpatch.detect.annotations import summary
    from hardpatch.detect.extents import place, without_images
    from hardpatch.detect.images import decode_images
    from hardpatch.detect.read import check_images, read_annotations

    if not Path(path).exists():
        raise UserError(f"--annotations: no such file or folder: {path}")
    done = 0

    def advance() -> None:
        nonlocal done
        done += 1
        count(done, total)

    try:
        read = read_annotations(path, folder)
        check_images(read, folder)
        total = len(read.images)
        decoded = decode_images(enumerate(read.images), folder, reading, threads, advance)
        sizes = {read.images[i].file: size for i, size in decoded.sizes.items()}
        read = place(without_images(read, decoded.bad), sizes)
    except UserError as error:
        return [Finding("annotations", f"--annotations: {error}", [path], "refused")]
    findings = [Finding("annotations", f"--annotations: {text}", [path]) for text in (summary(read), *read.notes)]
    if decoded.bad:
        bad = list(decoded.bad.values())
        level: Level = "refused" if len(bad) > limit * total else "warning"
        text = f"--annotations: {len(bad)} of {total} images cannot be used, the first: {bad[0]}"
        findings.append(Finding("annotated_images", text, bad, level))
    objects = Counter(each.category for image in read.images for each in image.objects)
    counts = {name: objects[number] for number, name in read.categories.items()}
    empty = [name for name, number in counts.items() if not number]
    if empty:
        text = f"--annotations: {len(empty)} classes without an object, the first: {empty[0]}"
        findings.append(Finding("classes_without_objects", text, empty, "warning"))
    if not objects:
        findings.append(Finding("no_objects", "--annotations: no object to learn from", level="refused"))
    else:
        filled = {name: number for name, number in counts.items() if number}
        least, most = min(filled, key=filled.__getitem__), max(filled, key=filled.__getitem__)
        ends = f"smallest class {least!r} with {filled[least]}, largest {most!r} with {filled[most]}"
        text = f"--annotations: objects: {ends}, ratio {filled[most] / filled[least]:.3g}"
        findings.append(Finding("objects", text))
    return findings


def mask_findings(
    folder: Path, masks: str, classes: str | None, reading: Reading, limit: float, workers: int, count: Count
) -> list[Finding]:
    """Read the label maps of the images of a folder, and count the pixels of their classes."""
    from hardpatch.segment.check import check_sets
    from hardpatch.segment.data import SegmentationSet
    from hardpatch.segment.labels import find_labels
    from hardpatch.segment.pairs import pair

    if not Path(masks).is_dir():
        raise UserError(f"--masks: expected a folder of label maps, got {masks}")
    if Path(masks).resolve().is_relative_to(folder.resolve()):
        raise UserError(f"--masks: expected a folder beside that of the images, got {masks} in {folder}")
    labels = find_labels(masks, classes)
    try:
        pairs = pair(folder, Path(masks), "masks")
        maps = SegmentationSet(pairs.images, pairs.label_maps, labels, said=pairs.said)
        checked = check_sets({"masks": maps}, reading, max_bad_fraction=limit, workers=workers, progress=count)
    except UserError as error:
        return [Finding("masks", str(error), [masks], "refused")]
    bad = list(checked.unreadable["masks"].values())
    findings = [Finding("masks", text, [masks]) for text in checked.said]
    findings += [Finding("masks", text, [masks], "warning") for text in checked.warnings]
    if bad:
        text = f"--masks: {len(bad)} pairs cannot be read, the first: {bad[0]}"
        findings.append(Finding("unreadable_pairs", text, bad, "warning"))
    return findings
