"""Packing of images into tar shards in the layout of WebDataset: in parallel, verified, and resumed after a kill.

Shard k holds images k * n to (k + 1) * n - 1 of the source, whatever the number of processes; its bytes depend on
nothing else. So a shard is either finished and noted in the journal, or written again.
"""

import hashlib
import io
import json
import os
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from hardpatch.choices import EncodingName
from hardpatch.data.bad_files import BadFiles, nothing_decodable
from hardpatch.data.content import content_digest
from hardpatch.data.loader import batch_loader
from hardpatch.data.reading import UndecodableImage
from hardpatch.data.smaller_copy import smaller_copy
from hardpatch.data.sources import OpenedSource, Source
from hardpatch.data.tar_members import TarMembers
from hardpatch.errors import UserError
from hardpatch.files import atomic_path, reason_of, write_text_atomically
from hardpatch.printable import printable

MANIFEST, JOURNAL = "manifest.json", ".hardpatch-shard"
FORMAT = "hardpatch shards 1"


@dataclass(frozen=True)
class Shard:
    """A finished shard; one without images has no file."""

    number: int
    images: int
    bytes: int
    sha256: str
    endings: dict[str, int]
    """images by the ending of their file"""
    bad: list[str] = field(default_factory=list)
    """ "name: reason" of those that cannot be decoded"""

    @property
    def file(self) -> str:
        """Name of the file."""
        return f"shard-{self.number:06d}.tar"


@dataclass(frozen=True)
class ShardResult:
    """Result of :func:`shard`."""

    images: int
    shards: list[Shard]
    bytes: int
    endings: dict[str, int]
    bad: list[str]
    resumed: int
    """shards that an earlier call had finished"""


def shard(
    source: OpenedSource,
    out: Path,
    *,
    side: int | None = None,
    encoding: EncodingName = "keep",
    images_per_shard: int = 1000,
    workers: int = 0,
    max_bad_fraction: float = 0.1,
    progress: Callable[[int, int | None], None] = lambda done, total: None,
) -> ShardResult:
    """Pack a source into tar shards, each of which is read back and compared.

    An image is `000000012.jpg`, by its number in the source, beside `000000012.cls` with the number of its class and
    `000000012.json` with its name and that of its class. `manifest.json`, the last file, lists the shards with their
    checksums. After an interruption the same call goes on, to the same bytes.

    Args:
        source: the images.
        out: the folder; new, or one that an earlier call with these arguments has begun.
        side: shorter side in pixels to which larger images are resized.
        encoding: of the images; `keep` copies the files of those that are not resized.
        images_per_shard: images of the source for each shard.
        workers: processes that decode and encode.
        max_bad_fraction: share of images that may be undecodable; these are logged and left out.
        progress: called with the number of images done and of all images.

    Raises:
        UserError: if `out` holds something else or cannot be written, or if too many images cannot be decoded.
    """
    settings = {
        "format": FORMAT,
        "images": len(source),
        "content": content_digest(source),
        "side": side,
        "encoding": encoding,
        "images_per_shard": images_per_shard,
    }
    bad = BadFiles(len(source), max_bad_fraction, "--max_bad_fraction", source=source)
    try:
        finished = _begun(out, settings)
        resumed = len(finished)
        packing = _Packing(source, out, side, encoding, images_per_shard)
        missing = [k for k in range(len(packing)) if k not in finished]
        for done in finished.values():
            bad.update(done.bad)
        progress(min(len(source), resumed * images_per_shard), len(source))
        for number, done in enumerate(_written(packing, missing, workers), resumed + 1):
            finished[done.number] = done
            _note(out, done)
            bad.update(done.bad)
            progress(min(len(source), number * images_per_shard), len(source))
        return _finished(out, settings, source, [finished[k] for k in sorted(finished)], resumed)
    except OSError as error:
        raise UserError(
            f"--out: cannot write {error.filename or out}: {reason_of(error)}; then run it again, it goes on"
        ) from None


def check_shard_folder(out: Path) -> None:
    """Raise UserError if a folder cannot become one of shards: only a new one, or one that was begun, can."""
    if not out.exists() or (out / JOURNAL).is_file():
        return
    if (out / MANIFEST).is_file():
        raise UserError(f"--out: {out} is finished, {MANIFEST} lists its shards; take another name")
    raise UserError(f"--out: expected a folder that does not exist yet, got {out}; take another name")


def _begun(out: Path, settings: dict[str, Any]) -> dict[int, Shard]:
    """Return the finished shards of a folder, whose files are compared with their checksums; make a new folder."""
    check_shard_folder(out)
    if not out.exists():
        out.mkdir(parents=True)
        write_text_atomically(out / JOURNAL, json.dumps(settings) + "\n", durable=True)
        return {}
    first, *lines = (out / JOURNAL).read_text(encoding="utf-8").splitlines() or [""]
    for key, value in settings.items():
        before = _parsed(first).get(key)
        if before != value:
            reason = "with other images" if key == "content" else f"with {key} {before!r}, now it is {value!r}"
            raise UserError(f"--out: {out} was begun {reason}; go on with the same command, or take another name")
    for left in out.glob(".shard-*.partial.tar"):  # of processes that were killed
        left.unlink(missing_ok=True)
    found: dict[int, Shard] = {}
    for line in lines:
        values = _parsed(line)
        if values:  # the last line may be cut off
            done = Shard(**values)
            if not done.images or _sha256(out / done.file) == done.sha256:
                found[done.number] = done
    return found


def _parsed(line: str) -> dict[str, Any]:
    try:
        values = json.loads(line)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def _note(out: Path, done: Shard) -> None:
    """Add a line to the journal."""
    with (out / JOURNAL).open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        end = "" if file.read() == b"\n" else "\n"  # a line that was cut off
        file.write(f"{end}{json.dumps(asdict(done))}\n".encode())
        file.flush()
        os.fsync(file.fileno())


def _finished(
    out: Path, settings: dict[str, Any], source: Source, shards: Sequence[Shard], resumed: int
) -> ShardResult:
    """Write the manifest in place of the journal, and return the result."""
    endings: Counter[str] = Counter()
    for done in shards:
        endings.update(done.endings)
    bad = [entry for done in shards for entry in done.bad]
    images, size = sum(done.images for done in shards), sum(done.bytes for done in shards)
    if not images:
        (out / JOURNAL).unlink()
        out.rmdir()
        raise nothing_decodable(len(source), bad)
    files = [{"file": done.file, **asdict(done)} for done in shards if done.images]
    classes = None if source.classes is None else [*source.classes]
    manifest = {**settings, "images": images, "classes": classes, "shards": files, "undecodable": bad}
    write_text_atomically(out / MANIFEST, json.dumps(manifest, indent=1) + "\n", durable=True)
    (out / JOURNAL).unlink(missing_ok=True)
    return ShardResult(images, [*shards], size, dict(endings), bad, resumed)


def _written(packing: "_Packing", numbers: Sequence[int], workers: int) -> Iterator[Shard]:
    """Yield shards as they are written. Raises the OSError of the process that could not."""
    for done in batch_loader(packing, numbers, min(workers, len(numbers)), prefetch=1):  # type: ignore[arg-type]
        if not isinstance(done, Shard):
            raise OSError(*done)
        yield done


class _Packing(Dataset[Shard | tuple[int, str, str]]):
    """Shard k of a source, which is written when it is asked for; an OSError comes back as its parts."""

    def __init__(self, source: Source, out: Path, side: int | None, encoding: EncodingName, images: int) -> None:
        self.source, self.out, self.side, self.encoding, self.images = source, out, side, encoding, images

    def __len__(self) -> int:
        return -(-len(self.source) // self.images)

    def __getitem__(self, k: int) -> Shard | tuple[int, str, str]:
        bad: list[str] = []
        endings: Counter[str] = Counter()
        path = self.out / Shard(k, 0, 0, "", {}).file
        try:
            with atomic_path(path, durable=True, concurrent=True) as partial:
                written: list[tuple[str, bytes]] = []
                with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as archive:
                    for i in range(k * self.images, min((k + 1) * self.images, len(self.source))):
                        try:
                            files = self._files(i)
                        except UndecodableImage as error:
                            bad.append(str(error))
                            continue
                        endings[files[0][0][9:]] += 1
                        for name, content in files:
                            member = tarfile.TarInfo(name)  # of the time 0, and of nobody
                            member.size = len(content)
                            archive.addfile(member, io.BytesIO(content))
                            written.append((name, _digest(content)))
                _verify(partial, written)
                size, digest = partial.stat().st_size, _sha256(partial)
            if not written:
                path.unlink()
        except OSError as error:
            return error.errno or 0, error.strerror or str(error), str(error.filename or path)
        images = sum(endings.values())
        return Shard(k, images, size if images else 0, digest if images else "", dict(sorted(endings.items())), bad)

    def _files(self, i: int) -> list[tuple[str, bytes]]:
        """Return the names and contents of an image, its label, and its names."""
        data, ending = smaller_copy(self.source, i, self.side, self.encoding)
        key, label = f"{i:09d}", self.source.label(i)
        about = {"name": printable(self.source.name(i))}
        files = [(key + ending, data)]
        if label is not None and self.source.classes is not None:
            files.append((f"{key}.cls", str(label).encode()))
            about["class_name"] = self.source.classes[label]
        return [*files, (f"{key}.json", json.dumps(about).encode())]


def _verify(path: Path, written: Sequence[tuple[str, bytes]]) -> None:
    """Read a shard back. Raises OSError if it does not hold what was written."""
    members = TarMembers(str(path))
    try:
        found = [(member.name, _digest(members.content(member.offset, member.size))) for member in members]
    except ValueError:
        found = []
    finally:
        members.close()
    if found != [*written]:
        raise OSError(None, "what was read back is not what was written; the disk may be damaged", str(path))


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _sha256(path: Path) -> str:
    """Return the checksum of a file; empty if it is missing."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
