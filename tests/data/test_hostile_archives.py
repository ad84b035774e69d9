"""Archives made to do harm: nothing is ever written to the disk, and nothing outside of them is read."""

import io
import os
import struct
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given

from hardpatch.data import archive_entries
from hardpatch.data.limits import MAX_FILE_BYTES
from hardpatch.data.reading import UndecodableImage
from hardpatch.data.sources import open_source
from hardpatch.errors import UserError
from tests.data.small import png, values
from tests.fuzz import fuzz_settings, mutated, outcome

NAMES = ["../../outside.png", "/etc/outside.png", "a/../../b.png", "c.png"]


def tree(folder: Path) -> set[str]:
    return {os.path.join(root, name) for root, folders, files in os.walk(folder) for name in (*folders, *files)}


def test_names_that_lead_out_are_names(tmp_path: Path) -> None:
    folder = tmp_path / "x" / "y"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "a.zip", "w") as archive, tarfile.open(folder / "a.tar", "w") as tar:
        for k, name in enumerate(NAMES):
            archive.writestr(name, png(k))
            member = tarfile.TarInfo(name)
            member.size = len(png(k))
            tar.addfile(member, io.BytesIO(png(k)))
    before = tree(tmp_path)
    for path in (folder / "a.zip", folder / "a.tar"):
        source = open_source(path)
        found = {source.name(i): int(source.image(i)[0, 0, 0]) for i in range(len(source))}
        assert found == {f"{path}/{name}": k for k, name in enumerate(NAMES)}, "read in place, under their names"
    assert tree(tmp_path) == before


def test_links_and_devices_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png(9))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for kind, name in ((tarfile.SYMTYPE, "s.png"), (tarfile.LNKTYPE, "l.png"), (tarfile.CHRTYPE, "d.png")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, str(tmp_path / "secret.png")
            tar.addfile(member)
        member = tarfile.TarInfo("ok.png")
        member.size = len(png(1))
        tar.addfile(member, io.BytesIO(png(1)))
    source = open_source(tmp_path / "a.tar")
    assert values(source) == [1]
    assert {entry.reason: entry.count for entry in source.skipped} == {"links": 2, "special files": 1}


def test_an_entry_that_unpacks_to_more_than_it_says(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", bytes(30_000_000))
        archive.writestr("b.png", png(2))
    data = bytearray((tmp_path / "a.zip").read_bytes())
    at = data.index(b"PK\1\2") + 24
    for length, message in (
        (1000, "its checksum differs"),
        (2**32 - 2, f"takes 4,294,967,294 bytes; expected at most {MAX_FILE_BYTES:,}"),
    ):
        data[at : at + 4] = struct.pack("<I", length)
        (tmp_path / "a.zip").write_bytes(data)
        source = open_source(tmp_path / "a.zip")
        with pytest.raises(UndecodableImage, match=message):
            source.image(0)
        assert source.image(1)[0, 0, 0] == 2


def test_labels_that_unpack_to_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_entries, "TEXT_BYTES", 2_000_000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for k in range(4):
            archive.writestr(f"{k}.png", png(k))
            archive.writestr(f"{k}.cls", bytes([65 + k]) * 900_000)
    with pytest.raises(UserError, match=r"a\.zip: .*more than 2,000,000 bytes of labels"):
        open_source(tmp_path / "a.zip")


def test_a_folder_of_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "1.png").write_bytes(png(1))
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "0.png").write_bytes(png(0))
    (folder / "out").symlink_to(outside)
    (folder / "loop").symlink_to(folder)
    (outside / "back").symlink_to(folder)
    assert sorted(values(open_source(folder))) == [0, 1], "links are followed, once"


def archives() -> list[bytes]:
    packed, joined = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive, tarfile.open(fileobj=joined, mode="w") as tar:
        for k in range(3):
            for name, data in ((f"{k}.png", png(k)), (f"{k}.cls", b"7")):
                archive.writestr(name, data)
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return [b"zip" + packed.getvalue(), b"tar" + joined.getvalue()]


@fuzz_settings
@given(data=mutated(archives()))
def test_fuzz_changed_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / ("a.zip" if b"PK" in data[:8] else "a.tar")
    path.write_bytes(data[3:])
    source = outcome(lambda: open_source(path), path)
    if source is not None:
        for i in range(len(source)):
            outcome(lambda i=i: source.image(i), path)  # type: ignore[misc]
