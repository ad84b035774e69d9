"""Sets that fit into memory: every image decoded once, before the first step."""

import logging
import mmap
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hardpatch.data.decode import UndecodableImage, check_channels, image_size
from hardpatch.data.loader import cores
from hardpatch.data.sources import Source
from hardpatch.errors import UserError

SAMPLED = 1000
"""Images of which the size is read to guess that of a set, before that of each one is."""
CHUNK = 32
"""Images that a thread takes at a time."""
MOST_THREADS = 16

log = logging.getLogger("hardpatch")


class HeldSource:
    """Another source's images as pixels in one allocation, which forked workers share.

    `image` gives views of it. What cannot be decoded raises as it does in the other source, whose numbers, names and
    labels these are. A copy that is sent to a spawned worker decodes on the fly instead.

    Raises UserError, before anything is decoded, if it would not fit into the memory that is free.
    """

    def __init__(self, source: Source, channels: int) -> None:
        check_channels(channels)
        self.source, self.channels = source, channels
        self.classes, self.skipped = source.classes, source.skipped
        self._sizes, self._broken = image_sizes(source, channels, available_memory())
        self._ends = np.cumsum(self._sizes.prod(1) * channels)
        # Anonymous and shared: /dev/shm, where torch would put it, is small in containers.
        pixels = np.frombuffer(mmap.mmap(-1, max(1, int(self._ends[-1]))), np.uint8)
        log.info("decoding %d images into memory, %.2f GB", len(source), self._ends[-1] / 1e9)

        def hold(i: int) -> None:
            self._view(pixels, i)[:] = source.image(i, channels)

        each(hold, [i for i in range(len(source)) if i not in self._broken], self._broken)
        self._pixels: npt.NDArray[np.uint8] | None = pixels

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": None}

    def __len__(self) -> int:
        return len(self.source)

    def name(self, i: int) -> str:
        return self.source.name(i)

    def image(self, i: int, channels: int) -> npt.NDArray[np.uint8]:
        if i in self._broken:
            raise UndecodableImage(self._broken[i])
        if self._pixels is None or channels != self.channels:
            return self.source.image(i, channels)
        return self._view(self._pixels, i)

    def encoded(self, i: int) -> bytes | None:
        return None

    def label(self, i: int) -> int | None:
        return self.source.label(i)

    def _view(self, pixels: npt.NDArray[np.uint8], i: int) -> npt.NDArray[np.uint8]:
        height, width = self._sizes[i]
        end = int(self._ends[i])
        return pixels[end - height * width * self.channels : end].reshape(height, width, self.channels)


def image_sizes(source: Source, channels: int, limit: int | None) -> tuple[npt.NDArray[np.int64], dict[int, str]]:
    """int64 [n, 2], height and width of each image by its header, 0 of those that have none; and why these have not.

    Raises UserError if all the pixels take more than `limit` bytes (None: whatever they take); from a sample of the set
    where that is enough to know.
    """
    n = len(source)
    sizes = np.zeros((n, 2), dtype=np.int64)
    broken: dict[int, str] = {}

    def measure(i: int) -> None:
        data = source.encoded(i)
        if data is None:
            sizes[i] = source.image(i, channels).shape[:2]
            return
        try:
            sizes[i] = image_size(data)
        except UndecodableImage as error:
            raise UndecodableImage(f"{source.name(i)}: {error}") from None

    sample = np.sort(np.random.default_rng(0).permutation(n)[:SAMPLED])
    for chosen in (sample, np.setdiff1d(np.arange(n), sample)):
        each(measure, chosen.tolist(), broken)
        known = len(sample) if chosen is sample else n
        needed = int(sizes.prod(1).sum() * channels * n / known)
        if limit is not None and needed > limit:
            raise UserError(
                f"data.in_memory: {n} images take {needed / 1e9:.1f} GB as pixels and {limit / 1e9:.1f} GB are free; "
                "use no, or a set made smaller with hardpatch shrink"
            )
    return sizes, broken


def each(work: Callable[[int], None], numbers: Sequence[int], broken: dict[int, str]) -> None:
    """Do the work for each number, in threads; where it raises UndecodableImage, `broken` gets the reason."""

    def some(chunk: Sequence[int]) -> None:
        for i in chunk:
            try:
                work(i)
            except UndecodableImage as error:
                broken[i] = str(error)

    chunks = [numbers[k : k + CHUNK] for k in range(0, len(numbers), CHUNK)]
    # Python's filters are one for all threads: what decoding sets and puts back in each of them must be the same.
    with warnings.catch_warnings(), ThreadPoolExecutor(min(MOST_THREADS, cores())) as pool:
        warnings.simplefilter("ignore")
        for _ in pool.map(some, chunks):
            pass


def available_memory() -> int | None:
    """Bytes that this process can still take without swapping, within its container's limit; None if unknown."""
    known = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        known += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        group = Path("/sys/fs/cgroup")
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(statistics["inactive_file"])
        known.append(int((group / "memory.max").read_text()) - used)
    except (OSError, ValueError, KeyError):  # another system, no limit ("max"), or another kind of limit
        pass
    return min(known, default=None)
