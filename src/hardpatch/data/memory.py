"""Data sets in memory: every image is decoded once, before the first step."""

import logging
import mmap
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hardpatch.data.decode import image_size, named_errors
from hardpatch.data.limits import check_channels
from hardpatch.data.reading import Pixels, Reading, UndecodableImage
from hardpatch.data.sources import Source
from hardpatch.data.workers import cores
from hardpatch.errors import UserError

SAMPLE = 1000
"""Images from whose sizes the memory for the whole set is estimated, before the headers of all are read."""
CHUNK = 32
"""Images that a thread takes at a time."""
MAX_THREADS = 16

log = logging.getLogger("hardpatch")


class InMemorySource:
    """Decoded pixels of another source in one allocation, which forked workers share.

    `image` returns views of it. Names, labels, numbers and undecodable images are those of the other source. A copy
    that is sent to a spawned worker has no pixels and decodes on demand.

    Raises UserError, before anything is decoded, if the pixels do not fit into the free memory.
    """

    def __init__(self, source: Source, reading: Reading, *, announce: bool = True) -> None:
        check_channels(reading.channels)
        self.source, self.reading = source, reading
        self.classes, self.skipped = source.classes, source.skipped
        self._sizes, self._broken = image_sizes(source, reading, available_memory())
        self._ends = np.cumsum(self._sizes.prod(1) * reading.number)
        # Anonymous and shared: /dev/shm, which torch would use, is small in containers.
        dtype = np.dtype(reading.dtype)
        pixels = np.frombuffer(mmap.mmap(-1, dtype.itemsize * max(1, int(self._ends[-1]))), dtype)
        if announce:
            log.info("decoding %d images into memory, %.2f GB", len(source), pixels.nbytes / 1e9)

        def decode(i: int) -> None:
            self._view(pixels, i)[:] = source.image(i, reading)

        run_in_threads(decode, [i for i in range(len(source)) if i not in self._broken], self._broken)
        self._pixels: Pixels | None = pixels

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": None}

    def __len__(self) -> int:
        return len(self.source)

    def name(self, i: int) -> str:
        """Name of image i in the other source."""
        return self.source.name(i)

    def image(self, i: int, reading: Reading | None = None) -> Pixels:
        """Return a view of image i, [H, W, channels]; another reading than that of the set is decoded on demand."""
        if i in self._broken:
            raise UndecodableImage(self._broken[i])
        reading = reading or self.reading
        if self._pixels is None or reading != self.reading:
            return self.source.image(i, reading)
        return self._view(self._pixels, i)

    def encoded(self, i: int) -> bytes | None:
        """Return None: the images are decoded."""
        return None

    def label(self, i: int) -> int | None:
        """Index of the class of image i; None if it is unlabeled."""
        return self.source.label(i)

    def _view(self, pixels: Pixels, i: int) -> Pixels:
        height, width = self._sizes[i]
        end = int(self._ends[i])
        channels = self.reading.number
        return pixels[end - height * width * channels : end].reshape(height, width, channels)


def image_sizes(source: Source, reading: Reading, limit: int | None) -> tuple[npt.NDArray[np.int64], dict[int, str]]:
    """Read the size of every image from its header.

    Args:
        source: the images.
        reading: of the pixels whose memory is limited.
        limit: bytes that the pixels of all images may take; None is no limit.

    Returns:
        int64 [n, 2], height and width, 0 where the header cannot be read; and "name: reason" of those images by index.

    Raises:
        UserError: if the pixels take more than the limit. A random sample is enough where that shows it.
    """
    n, bytes_per_pixel = len(source), reading.number * np.dtype(reading.dtype).itemsize
    sizes = np.zeros((n, 2), dtype=np.int64)
    broken: dict[int, str] = {}

    def measure(i: int) -> None:
        data = source.encoded(i)
        if data is None:
            sizes[i] = source.image(i, reading).shape[:2]
            return
        with named_errors(source.name, i):
            sizes[i] = image_size(data, reading)

    sample = np.sort(np.random.default_rng(0).permutation(n)[:SAMPLE])
    for indices in (sample, np.setdiff1d(np.arange(n), sample)):
        run_in_threads(measure, indices.tolist(), broken)
        measured = len(sample) if indices is sample else n
        needed = int(sizes.prod(1).sum() * bytes_per_pixel * n / measured)
        if limit is not None and needed > limit:
            raise UserError(
                f"data.in_memory: {n} images take {needed / 1e9:.1f} GB as pixels and {limit / 1e9:.1f} GB are free; "
                "use no, or a set made smaller with hardpatch shrink"
            )
    return sizes, broken


def run_in_threads(work: Callable[[int], None], indices: Sequence[int], broken: dict[int, str]) -> None:
    """Call `work` for each index in a pool of threads; `broken` gets the reason of each UndecodableImage."""

    def work_on(chunk: Sequence[int]) -> None:
        for i in chunk:
            try:
                work(i)
            except UndecodableImage as error:
                broken[i] = str(error)

    chunks = [indices[k : k + CHUNK] for k in range(0, len(indices), CHUNK)]
    # All threads share Python's warning filters. Decoding sets and restores them, so they must not differ by then.
    with warnings.catch_warnings(), ThreadPoolExecutor(min(MAX_THREADS, cores())) as pool:
        warnings.simplefilter("ignore")
        for _ in pool.map(work_on, chunks):
            pass


def available_memory() -> int | None:
    """Return the bytes that this process can still use without swapping, within the limit of its container.

    None if that is unknown.
    """
    limits = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        group = Path("/sys/fs/cgroup")
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(statistics["inactive_file"])
        limits.append(int((group / "memory.max").read_text()) - used)
    except (OSError, ValueError, KeyError):  # another system, no limit ("max"), or another kind of limit
        pass
    return min(limits, default=None)
