"""hardpatch shard: what was in a set is in its shards, to the same bytes after a kill."""

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hardpatch.cli import main
from hardpatch.data.decode import decode, read_header
from hardpatch.data.reading import Reading
from hardpatch.data.shard import JOURNAL, MANIFEST, shard
from hardpatch.data.smaller_copy import encode
from hardpatch.data.sources import Source, open_source
from hardpatch.data.tar_members import TarMembers
from tests.data.small import MANY_WORKERS, make_folder
from tests.end_to_end.test_full_disk import disk, fill

__all__ = ["disk"]  # a fixture
pytestmark = pytest.mark.filterwarnings(MANY_WORKERS)


def pack(*arguments: object) -> int:
    return main(["shard", *map(str, arguments), "--workers", "0"])


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*")) if path.is_file()
    }


def classes(source: Source) -> list[str | None]:
    numbers = [source.label(i) for i in range(len(source))]
    return [None if k is None or source.classes is None else source.classes[k] for k in numbers]


@pytest.fixture(params=["folder", "zip", "csv", "parquet"])
def kind(request: pytest.FixtureRequest, images: Path, tmp_path: Path) -> Path:
    """Images of two classes in several kinds of sets."""
    if request.param == "folder":
        return images
    if request.param == "zip":
        return Path(shutil.make_archive(str(tmp_path / "set"), "zip", images))
    if request.param == "csv":
        lines = [f"{path},{path.parent.name}\n" for path in sorted(images.rglob("*.jpg"))]
        (tmp_path / "list.csv").write_text("".join(lines))
        return tmp_path / "list.csv"
    assert main(["shrink", str(images), "--side", "100", "--out", str(tmp_path / "set"), "--workers", "0"]) == 0
    return tmp_path / "set"


def test_what_is_in_a_set_is_in_its_shards(kind: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "shards"
    assert pack(kind, "--out", out, "--images_per_shard", 12, "--json", tmp_path / "r.json") == 0
    said = capsys.readouterr().out
    assert f"{out}: 30 images (30 .jpg) in 3 shards, 0.2 MB, left out: 0; read back and equal" in said
    before, after = open_source(kind), open_source(out)
    assert [after.encoded(i) for i in range(30)] == [before.encoded(i) for i in range(30)]
    assert (classes(after), after.classes) == (classes(before), ("class_0", "class_1"))
    manifest = json.loads((out / MANIFEST).read_text())
    assert [(entry["file"], entry["sha256"]) for entry in manifest["shards"]] == sorted(
        (name, digest) for name, digest in digests(out).items() if name != MANIFEST
    )
    with tarfile.open(out / "shard-000001.tar") as archive:
        members = archive.getmembers()
        assert [member.name for member in members[:3]] == ["000000012.jpg", "000000012.cls", "000000012.json"]
        assert {(member.mtime, member.uid, member.gid, member.uname) for member in members} == {(0, 0, 0, "")}
        about = archive.extractfile(members[2])
        assert about is not None
        assert json.load(about) == {"name": before.name(12), "class_name": "class_0"}


@pytest.mark.parametrize("encoding", ["keep", "jpeg", "png", "webp", "tiff"])
def test_depth_and_channels_are_kept(tmp_path: Path, encoding: str) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "set").mkdir()
    pixels: dict[str, np.ndarray] = {
        "0.tif": rng.integers(0, 60_000, (40, 30, 5), dtype=np.uint16),
        "1.tif": rng.integers(0, 60_000, (40, 30, 1), dtype=np.uint16),
        "2.tif": rng.random((40, 30, 3), dtype=np.float32),
    }
    for name, values in pixels.items():
        (tmp_path / "set" / name).write_bytes(encode(values).data)
    np.save(tmp_path / "set" / "3.npy", pixels["0.tif"])
    assert pack(tmp_path / "set", "--out", tmp_path / "out", "--encode", encoding) == 0
    source = open_source(tmp_path / "out")
    for i, expected in enumerate([*pixels.values(), pixels["0.tif"]]):
        data = source.encoded(i)
        assert data is not None
        header = read_header(data)
        assert (header.channels, header.dtype) == (expected.shape[2], str(expected.dtype))
        reading = Reading(header.channels, header.dtype, high=(float("inf"),))
        assert np.array_equal(decode(data, reading), expected), source.name(i)


@pytest.mark.parametrize(
    ("encoding", "channels", "ending"), [("png", 3, ".png"), ("png", 1, ".png"), ("tiff", 3, ".tif")]
)
def test_encodings_without_loss(encoding: str, channels: int, ending: str) -> None:
    values = np.random.default_rng(0).integers(0, 256, (20, 30, channels), dtype=np.uint8)
    copy = encode(values, encoding)  # type: ignore[arg-type]
    assert copy.ending == ending
    assert np.array_equal(decode(copy.data, Reading(channels)), values)
    assert encode(values, "webp").ending == (".webp" if channels == 3 else ".tif")


def test_resized_and_encoded_as_shrink_does(images: Path, tmp_path: Path) -> None:
    assert main(["shrink", str(images), "--side", "20", "--out", str(tmp_path / "a"), "--workers", "0"]) == 0
    assert pack(images, "--side", 20, "--out", tmp_path / "b") == 0
    a, b = open_source(tmp_path / "a"), open_source(tmp_path / "b")
    assert [a.encoded(i) for i in range(30)] == [b.encoded(i) for i in range(30)]


def test_broken_images_are_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path / "set", 20, broken=(3, 4, 5))
    assert pack(tmp_path / "set", "--out", tmp_path / "out", "--images_per_shard", 3) == 2
    assert "3 of 20 images (15.00%) cannot be decoded" in capsys.readouterr().err
    more = ("--images_per_shard", 3, "--max_bad_fraction", 0.2)
    assert pack(tmp_path / "set", "--out", tmp_path / "out", *more) == 0
    printed = capsys.readouterr()
    assert sum(line.startswith("cannot decode") for line in printed.err.splitlines()) == 3
    assert "left out: 3" in printed.out
    source = open_source(tmp_path / "out")
    assert len(source) == 17
    assert len(json.loads((tmp_path / "out" / MANIFEST).read_text())["undecodable"]) == 3


def test_no_image_that_can_be_decoded(tmp_path: Path, fails: Callable[..., str]) -> None:
    make_folder(tmp_path / "set", 4, broken=(0, 1, 2, 3))
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    assert pack(tmp_path / "set", "--out", tmp_path / "out", "--max_bad_fraction", 1) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("workers", "kills"), [(0, (2,)), (2, (3, 8))])
def test_killed_it_goes_on_to_the_same_bytes(
    images: Path, tmp_path: Path, workers: int, kills: tuple[int, ...]
) -> None:
    command = ["shard", str(images), "--images_per_shard", "2", "--encode", "png"]
    assert main([*command, "--out", str(tmp_path / "whole"), "--workers", "0"]) == 0
    start = [sys.executable, "-c", SLOW, *command, "--out", str(tmp_path / "killed"), "--workers", str(workers)]
    for least in kills:
        process = subprocess.Popen(start, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE)
        while len(list((tmp_path / "killed").glob("*.tar"))) < least:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with (tmp_path / "killed" / JOURNAL).open("a") as file:
        file.write('{"number": 13, "ima')  # a line that was cut off
    (tmp_path / "killed" / "shard-000000.tar").write_bytes(b"")  # a file that was lost after all
    assert main([*command, "--out", str(tmp_path / "killed"), "--workers", str(workers)]) == 0
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


SLOW = """
import sys, time
from hardpatch.data import shard
write = shard._verify
shard._verify = lambda *arguments: (time.sleep(0.1), write(*arguments))
from hardpatch.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_folder_of_something_else(images: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    def stop(done: int, total: int | None) -> None:
        if done:
            raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        shard(open_source(images), out, images_per_shard=7, progress=stop)
    wrong = "--out: {} was begun with images_per_shard 7, now it is 1000; go on with the same command"
    assert pack(images, "--out", out) == 2
    with pytest.raises(ValueError, match=wrong.format(out)):
        shard(open_source(images), out)
    other = make_folder(tmp_path / "other", 30)
    with pytest.raises(ValueError, match="was begun with other images"):
        shard(other, out, images_per_shard=7)  # type: ignore[arg-type]
    shard(open_source(images), out, images_per_shard=7)
    assert fails("shard", images, "--out", out).endswith(
        "is finished, manifest.json lists its shards; take another name"
    )
    assert "expected a folder that does not exist" in fails("shard", images, "--out", tmp_path / "other")


def test_a_shard_that_cannot_be_read_back(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TarMembers, "content", lambda self, offset, size: bytes(size))
    with pytest.raises(ValueError, match="what was read back is not what was written; the disk may be damaged"):
        shard(open_source(images), tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [JOURNAL]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_full_disk(
    images: Path, tmp_path: Path, disk: Path, workers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["shard", str(images), "--images_per_shard", "3", "--encode", "tiff", "--workers", workers]
    assert main([*command, "--out", str(tmp_path / "whole")]) == 0
    filler = fill(disk)
    os.truncate(filler, filler.stat().st_size - 60_000)
    capsys.readouterr()
    assert main([*command, "--out", str(disk / "out")]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("hardpatch shard: --out: cannot write ")
    assert line.endswith("No space left on device; then run it again, it goes on")
    for path in (disk / "out").glob("*.tar"):
        assert digests(disk / "out")[path.name] == digests(tmp_path / "whole")[path.name]
    assert not list((disk / "out").glob(".*partial*"))
    filler.unlink()
    assert main([*command, "--out", str(disk / "out")]) == 0
    assert digests(disk / "out") == digests(tmp_path / "whole")


def test_pictures_that_a_webp_can_hold(images: Path, tmp_path: Path) -> None:
    assert pack(images, "--out", tmp_path / "out", "--encode", "webp") == 0
    data = open_source(tmp_path / "out").encoded(0)
    assert data is not None
    with Image.open(io.BytesIO(data)) as file:
        assert file.format == "WEBP"
