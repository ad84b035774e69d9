"""Files that cannot be decoded: counted, logged, and too many of them refused."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hardpatch.errors import UserError
from hardpatch.files import optional_file, write_text_atomically
from hardpatch.printable import printable
from hardpatch.processes import is_first

if TYPE_CHECKING:
    from hardpatch.data.sources import Source


FOLLOWED = 2_000_000
"""Images of a set whose classes are followed. The first broken file waits for all names, 0.4 s for 200,000 of them."""


class BadFiles:
    """Files of a source that could not be decoded. Each is logged once; too many of them stop the run.

    Args:
        total: images in the source.
        max_bad_fraction: share of them that may be undecodable, in [0, 1].
        option: of the command line that sets this share.
        log: writes one line; None is a warning of the logger `hardpatch`.
        verb: is said of such a file: it cannot "decode", or "use" where other reasons count, too.
        source: the images, of whose classes each is named that loses its last one, up to :data:`FOLLOWED` images.
    """

    def __init__(
        self,
        total: int,
        max_bad_fraction: float,
        option: str = "--data.max_bad_fraction",
        log: Callable[[str], object] | None = None,
        verb: Literal["decode", "use"] = "decode",
        source: "Source | None" = None,
    ) -> None:
        self.total, self.max_bad_fraction, self.option, self.verb = total, max_bad_fraction, option, verb
        self._log = logging.getLogger("hardpatch").warning if log is None else log
        self._entries: dict[str, None] = {}
        self._earlier: set[str] = set()
        self._file: Path | None = None
        self._source = source

    def __len__(self) -> int:
        """Return the number of files, those of earlier calls of a resumed run included."""
        return len(self._earlier | self._entries.keys())

    def keep_in(self, file: Path) -> None:
        """Keep the list in ``file``, a line each, so that a resumed run counts the files of earlier calls, too."""
        self._file = file
        if file.is_file():
            self._earlier = set(file.read_text(encoding="utf-8", errors="surrogateescape").splitlines())
        if file.is_symlink() and is_first():  # what it points to is not written
            text = "".join(f"{entry}\n" for entry in sorted(self._earlier))
            with optional_file(file):
                write_text_atomically(file, text)

    def update(self, bad: Iterable[str]) -> None:
        """Add the `bad` files of a batch. Raises UserError once they are more than the allowed share of the source."""
        for entry in map(printable, bad):  # a file's name may hold line breaks
            if entry not in self._entries:
                self._entries[entry] = None
                self._log(f"cannot {self.verb} {entry}")
                self._count_class(entry)
                if self._file is not None and entry not in self._earlier and is_first():
                    self._note(self._file, entry)
        # Files of earlier calls may have been repaired, so they do not count for the limit.
        count = len(self._entries)
        if count > self.max_bad_fraction * self.total:
            raise UserError(
                f"{self.option.removeprefix('--')}: {count} of {self.total} images ({count / self.total:.2%}) "
                f"cannot be {self.verb}d and at most {self.max_bad_fraction:.2%} may be; the last: "
                f"{'; '.join([*self._entries][-3:])}; raise {self.option} to allow more"
            )

    @staticmethod
    def _note(path: Path, entry: str) -> None:
        with optional_file(path), path.open("a", encoding="utf-8", errors="surrogateescape") as file:
            file.write(f"{entry}\n")

    def _count_class(self, entry: str) -> None:
        """Say so if the class of this file has no other image left."""
        if self._source is None or self._source.classes is None or self.total > FOLLOWED:
            return
        parts = entry.split(": ")
        names = (": ".join(parts[:k]) for k in range(len(parts) - 1, 0, -1))  # a name may hold a colon, as a reason may
        label = next((self._labels[name] for name in names if name in self._labels), None)
        if label is None:
            return
        self._left[label] -= 1
        if not self._left[label]:
            self._log(f"class {self._source.classes[label]!r} has no image that can be decoded")

    @cached_property
    def _labels(self) -> dict[str, int | None]:
        """Label of each image by its name."""
        assert self._source is not None
        return {printable(self._source.name(i)): self._source.label(i) for i in range(self.total)}

    @cached_property
    def _left(self) -> Counter[int | None]:
        """Images of each class that are not known to be broken."""
        return Counter(self._labels.values())


def nothing_decodable(total: int, bad: Sequence[str]) -> UserError:
    """Error for a source of which no image can be decoded; `bad` holds "name: reason" of at least one."""
    return UserError(f"data: none of the {total} images can be decoded; the last was {bad[-1]}")
