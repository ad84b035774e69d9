"""Time, memory and size of the index of a tar archive with millions of images.

    python benchmarks/shard_index.py --images 10000000 --folder /tmp

Writes a tar of images of one pixel, each with a `.cls`, opens it twice (the second time by the index file) and reads
images at random. Each of these runs in a process of its own, whose peak of memory is shown. At the end the training's
loader reads with two workers; shown is the memory of the three processes in the course of that.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

BLOCK, CHUNK = 512, 20_000
CLASSES = 1000
PIXEL = (
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\2\0\0\0\x90wS\xde\0\0\0\x0cIDATx\x9cc```\0\0\0\4\0\1\xf6\x178U"
    b"\0\0\0\0IEND\xaeB`\x82"
)
"""A PNG of one black pixel."""
LOADED = 6
"""Times at which the memory of the loader is looked at."""


def header(name: bytes, size: int) -> np.ndarray:
    """Return the header of a file without its checksum: uint8 ``[512]``."""
    block = np.zeros(BLOCK, np.uint8)
    fields = (0, name), (100, b"0000644\0"), (108, b"0000000\0"), (116, b"0000000\0"), (124, b"%011o\0" % size)
    for at, text in (*fields, (136, b"00000000000\0"), (156, b"0"), (257, b"ustar\x0000")):
        block[at : at + len(text)] = np.frombuffer(text, np.uint8)
    block[148:156] = 32
    return block


def write_tar(path: Path, images: int) -> None:
    """Write a tar of images of one pixel and their labels: blocks of header, image, header, label."""
    digits = 10 ** np.arange(8, -1, -1)
    template = np.zeros((4, BLOCK), np.uint8)
    template[0], template[2] = header(b"000000000.png", len(PIXEL)), header(b"000000000.cls", 3)
    template[1, : len(PIXEL)] = np.frombuffer(PIXEL, np.uint8)
    with path.open("wb") as file:
        for start in range(0, images, CHUNK):
            numbers = np.arange(start, min(start + CHUNK, images))
            blocks = np.repeat(template[None], len(numbers), 0)
            blocks[:, [0, 2], :9] = (numbers[:, None] // digits % 10 + 48).astype(np.uint8)[:, None]
            blocks[:, 3, :3] = (numbers[:, None] % CLASSES // digits[-3:] % 10 + 48).astype(np.uint8)
            sums = blocks[:, [0, 2]].sum(2, dtype=np.int64)
            octal = (sums[..., None] // 8 ** np.arange(5, -1, -1) % 8 + 48).astype(np.uint8)
            blocks[:, [0, 2], 148:154], blocks[:, [0, 2], 154] = octal, 0
            file.write(blocks.tobytes())
        file.write(bytes(2 * BLOCK))


def memory(kind: str, process: str = "self") -> float:
    """Return the memory of a process in MB: VmHWM is its peak, RssAnon what is its own now."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1e3


def measure(path: Path, reads: int) -> dict[str, float]:
    """Open an archive in this process, and read images at random."""
    from hardpatch.data.sources import open_source

    before, start = memory("VmHWM"), time.perf_counter()
    source = open_source(path)
    opened = time.perf_counter() - start
    start = time.perf_counter()
    draw = random.Random(0)
    for _ in range(reads):
        i = draw.randrange(len(source))
        assert source.encoded(i) == PIXEL
    each = (time.perf_counter() - start) / reads
    return {
        "images": len(source),
        "seconds": opened,
        "before_mb": before,
        "peak_mb": memory("VmHWM"),
        "own_mb": memory("RssAnon"),
        "us_a_read": each * 1e6,
    }


def load_images(path: Path, seconds: float) -> list[str]:
    """Load batches with two workers; return the images loaded and the memory of all processes, from time to time."""
    from hardpatch.data.augment import TrainTransform
    from hardpatch.data.loader import train_batches
    from hardpatch.data.sources import open_source

    stream = train_batches(open_source(path), TrainTransform((8, 8)), batch_size=256, seed=0, workers=2)
    found, images, start = [], 0, time.perf_counter()
    for k in range(1, LOADED + 1):
        while time.perf_counter() - start < seconds * k / LOADED:
            images += len(next(stream).indices)
        children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
        processes = [memory("RssAnon", process) for process in ("self", *children)]
        found.append(f"{images:,}: {' + '.join(f'{size:.0f}' for size in processes)} MB")
    stream.close()
    return found


def main() -> None:
    """Write, index and read; print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where the archive is written, and removed at the end")
    parser.add_argument("--reads", type=int, default=20_000)
    parser.add_argument("--seconds", type=float, default=60.0, help="time in which the loader reads")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(measure(options.measure, options.reads)))
        return
    if options.load is not None:
        print("\n".join(load_images(options.load, options.seconds)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = Path(folder) / "a.tar"
        start = time.perf_counter()
        write_tar(path, options.images)
        print(f"wrote {path.stat().st_size / 1e9:.2f} GB in {time.perf_counter() - start:.0f} s", flush=True)
        for what in ("index made", "index read"):
            command = [sys.executable, __file__, "--measure", str(path), "--reads", str(options.reads)]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, env=os.environ).stdout)
            print(
                f"{what}: {found['images']:,} images in {found['seconds']:.2f} s; memory before "
                f"{found['before_mb']:.0f} MB, at most {found['peak_mb']:.0f} MB, at the end {found['own_mb']:.0f} MB "
                f"of its own; {found['us_a_read']:.0f} us to read an image",
                flush=True,
            )
        size = (path.parent / ".hardpatch-index").stat().st_size
        print("loaded, and memory of the three processes:", flush=True)
        command = [sys.executable, __file__, "--load", str(path), "--seconds", str(options.seconds)]
        subprocess.run(command, check=True, env=os.environ)
        print(f"index file: {size / 1e6:.1f} MB, {size / options.images:.1f} bytes an image")


if __name__ == "__main__":
    main()
