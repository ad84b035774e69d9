"""Training and validation set of a detector, read and checked before anything is written."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hardpatch.data.bad_files import BadFiles
from hardpatch.data.names import some
from hardpatch.data.reading import Reading
from hardpatch.detect.annotations import AnnotatedImage, AnnotationSet, summary
from hardpatch.detect.extents import Size, place, without_images
from hardpatch.detect.fields import NAMED, plural
from hardpatch.detect.images import decode_images
from hardpatch.detect.read import check_images, read_annotations
from hardpatch.errors import UserError


@dataclass
class CheckedSet:
    """Annotations whose images were decoded, and what to tell about them."""

    annotations: AnnotationSet
    """of the images that can be used"""
    folder: Path
    """of the images"""
    bad: list[str] = field(default_factory=list)
    """entries "path: reason" of the images that cannot be used"""
    lines: list[str] = field(default_factory=list)
    """which format was read, what is used, and what is left out"""


Count = Callable[[int, int | None], object]
"""Shows progress, given the images that are done and all of them."""


def open_sets(
    inputs: Mapping[str, str], *, reading: Reading, threads: int, max_bad_fraction: float, count: Count
) -> tuple[CheckedSet, CheckedSet]:
    """Read the annotations of both sets, decode every image once, and compare the sizes.

    Args:
        inputs: paths by argument: ``train``, ``annotations``, ``val``, ``val_annotations``.
        reading: channels, type and range of the images.
        threads: images to decode at a time.
        max_bad_fraction: largest share of a set that cannot be used.
        count: shows the progress.

    Raises:
        UserError: for annotations that cannot be used, for too many bad images, for sets of other classes, or if no
            object is left to learn from.
    """
    train = _Opening("train", inputs["train"], "annotations", inputs["annotations"], None)
    val = _Opening("val", inputs["val"], "val_annotations", inputs["val_annotations"], train.read.categories)
    if train.read.categories != val.read.categories:
        raise UserError(
            f"--val_annotations: expected the {len(train.read.categories)} categories of {train.read.path}, "
            f"{val.read.path} has others{_first_difference(train.read.categories, val.read.categories)}"
        )
    total, done = len(train.read.images) + len(val.read.images), 0

    def advance() -> None:
        nonlocal done
        done += 1
        count(done, total)

    for opening in (train, val):  # what the annotations contradict is found before most images are decoded
        opening.place(reading, threads, advance)
    for opening in (train, val):
        opening.decode(reading, threads, advance)
        opening.refuse_bad(max_bad_fraction)
    if not train.read.objects:
        raise UserError(f"--annotations: {train.read.path} has no object to learn from; {summary(train.read)}")
    return train.checked(), val.checked()


class _Opening:
    """A set that is being read.

    Args:
        split: option of the folder of images, without dashes.
        folder: of the images.
        argument: option of the annotations.
        path: of the annotations.
        categories: of the training set, None for that itself.
    """

    def __init__(self, split: str, folder: str, argument: str, path: str, categories: Mapping[int, str] | None) -> None:
        self.split, self.folder, self.argument = split, Path(folder), argument
        try:
            self.read = read_annotations(path, folder, categories)
        except UserError as error:
            raise UserError(f"--{argument}: {error}") from None
        try:
            check_images(self.read, folder)
        except UserError as error:
            raise UserError(f"--{split}: {error}") from None
        self.total = len(self.read.images)
        self.bad: list[str] = []
        self.oriented = 0
        self._done: set[int | str] = set()

    def place(self, reading: Reading, threads: int, advance: Callable[[], None]) -> None:
        """Find the sizes that the annotations do not have, and place the objects.

        Raises:
            UserError: if a mask does not fit its image, or every object is left out.
        """
        listed = sum(len(image.objects) for image in self.read.images) + sum(self.read.left_out.values())
        sizes = self._decode(lambda image: not image.has_size, reading, threads, advance)
        try:
            self.read = place(self.read, sizes)
        except UserError as error:
            raise UserError(f"--{self.argument}: {error}") from None
        if listed and self.read.images and not any(image.objects for image in self.read.images):
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.read.left_out.items() if count)
            raise UserError(f"--{self.argument}: {self.read.path}: every object would be left out: {reasons}")

    def decode(self, reading: Reading, threads: int, advance: Callable[[], None]) -> None:
        """Decode the images that were not needed to place the objects."""
        self._decode(lambda image: image.id not in self._done, reading, threads, advance)

    def _decode(
        self,
        chosen: Callable[[AnnotatedImage], bool],
        reading: Reading,
        threads: int,
        advance: Callable[[], None],
    ) -> dict[str, Size]:
        """Decode the chosen images, take those that cannot be used out of the set, and return sizes by file."""
        images = [(index, image) for index, image in enumerate(self.read.images) if chosen(image)]
        found = decode_images(images, self.folder, reading, threads, advance)
        self._done |= {image.id for _, image in images}
        self.bad += [entry for _, entry in sorted(found.bad.items())]
        self.oriented += len(found.oriented)
        sizes = {self.read.images[index].file: size for index, size in found.sizes.items()}
        self.read = without_images(self.read, found.bad)
        return sizes

    def refuse_bad(self, max_bad_fraction: float) -> None:
        """Refuse a set of which too many images cannot be used, or all.

        Raises:
            UserError: names the last of them.
        """
        try:
            bad_files = BadFiles(self.total, max_bad_fraction, "--max_bad_fraction", lambda line: None, "use")
            bad_files.update(self.bad)
        except UserError as error:
            raise UserError(f"--{self.split}: {error}") from None
        if len(self.bad) == self.total:
            raise UserError(f"--{self.split}: none of the {self.total} images can be used; the first: {self.bad[0]}")

    def checked(self) -> CheckedSet:
        """Return the set with its lines for the user."""
        lines = [f"--{self.split}: {summary(self.read, len(self.bad))}"]
        lines += [f"--{self.split}: {note}" for note in (*self.read.notes, *self._class_notes())]
        if self.oriented:
            lines.append(
                f"--{self.split}: {plural(self.oriented, 'image')} with an EXIF orientation: see "
                "pictures/detections.png whether the annotations were drawn on the image as it is read"
            )
        if not self.read.objects:
            lines.append(f"--{self.split}: no object; average precision cannot be measured")
        return CheckedSet(self.read, self.folder, self.bad, lines)

    def _class_notes(self) -> list[str]:
        """Return lines about classes of the same name, and about classes without an object."""
        by_name: dict[str, list[int]] = {}
        for number, name in self.read.categories.items():
            by_name.setdefault(name, []).append(number)
        notes = [
            f"categories {' and '.join(map(str, numbers))} are all called {name!r} and are classes of their own; give "
            "their objects one id if they are one class"
            for name, numbers in by_name.items()
            if len(numbers) > 1
        ]
        present = {obj.category for obj in self.read.objects}
        absent = [name for number, name in self.read.categories.items() if number not in present]
        if present and absent:
            effect = "not learned" if self.split == "train" else "not measured"
            notes.append(
                f"{len(absent)} of {plural(len(self.read.categories), 'class')} without an object, {effect}: "
                f"{some(absent, limit=NAMED)}"
            )
        return notes


def _first_difference(train: Mapping[int, str], val: Mapping[int, str]) -> str:
    """Describe the first category in which two sets differ."""
    id_ = min(key for key in train.keys() | val.keys() if train.get(key) != val.get(key))
    return f": category {id_} is {train.get(id_)!r} there and {val.get(id_)!r} here"
