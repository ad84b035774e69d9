"""Index of tar archives: the members that tarfile finds, kept in a file, made anew where an archive has changed."""

import io
import os
import pickle
import tarfile
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardpatch.data import archives, index_file
from hardpatch.data.archive_entries import Entries
from hardpatch.data.archive_index import read_index
from hardpatch.data.columns import Columns
from hardpatch.data.reading import UndecodableImage
from hardpatch.data.sources import open_source
from hardpatch.data.summary import summarize
from hardpatch.data.tar_members import Member, TarMembers
from hardpatch.errors import UserError
from tests.data.small import names, one_line, png, values
from tests.data.test_archives import write_tar
from tests.fuzz import fuzz_settings

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=200)
FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
KINDS = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)


def members(path: Path) -> list[Member]:
    found = TarMembers(str(path))
    try:
        return list(found)
    finally:
        found.close()


def by_tarfile(path: Path) -> list[Any]:
    with tarfile.open(path, errors="surrogateescape") as archive:
        found = [member for member in archive if not member.isdir()]
        return [(m.name, m.offset_data, m.size if m.isreg() and m.sparse is None else 0) for m in found]


@fuzz_settings
@given(
    entries=st.lists(
        st.tuples(st.lists(NAMES, min_size=1, max_size=3), st.binary(max_size=700), st.sampled_from(KINDS))
    ),
    kind=st.sampled_from(FORMATS),
    mtime=st.sampled_from([0, 1.5]),
)
def test_fuzz_members_are_those_of_tarfile(
    tmp_path_factory: pytest.TempPathFactory, entries: list[Any], kind: int, mtime: float
) -> None:
    path = tmp_path_factory.getbasetemp() / "a.tar"
    with tarfile.open(path, "w", format=kind) as archive:
        for parts, content, member_kind in entries:
            member = tarfile.TarInfo("/".join(parts))
            member.type, member.mtime, member.linkname = member_kind, mtime, "x"
            member.size = len(content) if member.isreg() else 0
            try:
                archive.addfile(member, io.BytesIO(content))
            except ValueError:  # a name that ustar cannot hold
                continue
    assert [member[:3] for member in members(path)] == by_tarfile(path)


def test_headers_that_only_tarfile_reads(tmp_path: Path) -> None:
    sparse = tmp_path / "sparse"
    with sparse.open("wb") as file:
        file.truncate(1 << 20)
        file.write(b"x" * 5000)
    system = tmp_path / "system.tar"
    if os.system(f"tar -C {tmp_path} --sparse -cf {system} sparse") == 0:
        assert [(member.name, member.left_out) for member in members(system)] == [("sparse", "special files")]
    large = tarfile.TarInfo("large.png")
    large.size = 9 << 30  # in base 256
    with (tmp_path / "large.tar").open("wb") as file:
        file.write(large.tobuf(tarfile.GNU_FORMAT))
        file.truncate(512 + large.size + 1024)
    assert members(tmp_path / "large.tar") == [Member("large.png", 512, 9 << 30, "")]
    with (
        (tmp_path / "global.tar").open("wb") as file,
        tarfile.open(fileobj=file, mode="w", pax_headers={"path": "b.png"}) as tar,
    ):
        tar.addfile(tarfile.TarInfo("a.png"))
    assert [member.name for member in members(tmp_path / "global.tar")] == ["b.png"]


@pytest.mark.parametrize("size", [1 << 40, 5000, -5])
def test_sizes_that_lie(tmp_path: Path, size: int) -> None:
    member = tarfile.TarInfo("b.png")
    member.size = size
    header = member.tobuf(tarfile.GNU_FORMAT)
    (tmp_path / "a.tar").write_bytes(header + png(1).ljust(512, b"\0") + bytes(1024))
    with pytest.raises(UserError, match="cut off or damaged at its start") as error:
        open_source(tmp_path / "a.tar")
    one_line(error)


def test_an_extended_header_of_gigabytes(tmp_path: Path) -> None:
    member = tarfile.TarInfo("x")
    member.size, member.type = 4 << 30, tarfile.XHDTYPE
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(member.tobuf(tarfile.USTAR_FORMAT))
        file.truncate(5 << 30)
    with pytest.raises(UserError, match="an extended header of 4,294,967,296 bytes"):
        open_source(tmp_path / "a.tar")


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three shards of two images, of which any number is indexed in a file."""
    monkeypatch.setattr(index_file, "KEPT", 1)
    monkeypatch.setenv("HARDPATCH_CACHE", str(tmp_path / "cache"))
    for shard in range(3):
        files = {
            f"{k:03d}.{end}": data
            for k in (2 * shard, 2 * shard + 1)
            for end, data in (("png", png(k)), ("cls", b"%d" % k))
        }
        write_tar(tmp_path / "set" / f"a-{shard:06d}.tar", files)
    return tmp_path / "set"


def test_an_index_is_made_once(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_source(shards)
    file = shards / index_file.NAME
    assert f"index kept in {file} (0.0 MB)" in summarize(first)
    assert values(first) == [0, 1, 2, 3, 4, 5]
    monkeypatch.setattr(index_file, "read_index", lambda path, keys: pytest.fail(f"{path} is read again"))
    again = open_source(shards)
    assert (names(again), values(again), again.classes) == (names(first), values(first), first.classes)
    assert not any("index" in note for note in again.notes)
    assert values(open_source(f"{shards}/a-{{000001..000002}}.tar")) == [2, 3, 4, 5]
    assert values(pickle.loads(pickle.dumps(again))) == [0, 1, 2, 3, 4, 5]
    assert len(pickle.dumps(again)) < 2000
    file.unlink()
    with pytest.raises(UserError, match="was removed or replaced"):
        pickle.loads(pickle.dumps(again))


def test_a_changed_archive_is_read_again_and_only_that_one(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_source(shards)
    write_tar(shards / "a-000001.tar", {"002.png": png(8), "002.cls": b"8"})
    read: list[str] = []

    def noted(path: str, keys: Collection[str]) -> Entries:
        read.append(path)
        return read_index(path, keys)

    monkeypatch.setattr(index_file, "read_index", noted)
    source = open_source(shards)
    assert (values(source), read) == ([0, 1, 8, 4, 5], [str(shards / "a-000001.tar")])
    assert "index of 1 archives made anew, as they had changed" in summarize(source)
    os.utime(shards / "a-000002.tar", (1, 1))
    open_source(shards)
    assert read[1:] == [str(shards / "a-000002.tar")], "of the same size, but another time"


@pytest.mark.parametrize("damage", ["cut", "empty", "bytes", "numbers"])
def test_a_damaged_index_is_made_anew(shards: Path, damage: str) -> None:
    expected = values(open_source(shards))
    file = shards / index_file.NAME
    content = file.read_bytes()
    changed = {"cut": content[:-300], "empty": b"", "bytes": content[:50] + b"]" + content[51:]}
    changed["numbers"] = content.replace(b'"folder_of": [', b'"folder_of": [9')
    file.write_bytes(changed[damage])
    source = open_source(shards)
    assert values(source) == expected
    assert f"index kept in {file}" in summarize(source)


@fuzz_settings
@given(data=st.data())
def test_fuzz_a_rotten_index(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("rotten")
    write_tar(folder / "a.tar", {"0.png": png(3), "0.cls": b"1", "1.png": png(4)})
    stored = index_file.Stored(*index_file._state(str(folder / "a.tar")), read_index(str(folder / "a.tar")))
    index_file.save([folder / index_file.NAME], {"a.tar": stored})
    content = bytearray((folder / index_file.NAME).read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (folder / index_file.NAME).write_bytes(content)
    source = open_source(folder / "a.tar")
    for i in range(len(source)):
        with suppress(UndecodableImage):
            source.image(i)


def test_a_folder_that_cannot_be_written(shards: Path, tmp_path: Path) -> None:
    (shards / index_file.NAME).mkdir()  # stands for a folder that is read-only, which root can write
    (shards / index_file.NAME / "x").touch()
    file = index_file.cache_file(str(shards))
    assert f"index kept in {file}" in summarize(open_source(shards))
    assert file.parent == tmp_path / "cache"
    assert "index" not in summarize(open_source(shards))
    file.unlink()
    file.mkdir()
    (file / "x").touch()
    source = open_source(shards)
    assert values(source) == [0, 1, 2, 3, 4, 5]
    assert "index not kept, since" in summarize(source)


def test_few_files_are_not_worth_an_index(tmp_path: Path) -> None:
    open_source(write_tar(tmp_path / "a.tar", {"a.png": png(1)}))
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar"]


def test_keys_that_no_one_asked_for_before(shards: Path) -> None:
    write_tar(shards / "a-000000.tar", {"0.png": png(0), "0.json": b'{"label": "cat", "width": 5}'})
    source = open_source(shards / "a-000000.tar")
    assert source.classes == ("cat",)
    other = open_source(shards / "a-000000.tar", Columns(label="width"))
    assert other.classes == ("5",)
    assert open_source(shards / "a-000000.tar").classes == ("cat",)


def test_labels_that_lie_far_from_their_image(tmp_path: Path) -> None:
    path = write_tar(
        tmp_path / "a.tar", {f"{k}.png": png(k) for k in range(3)} | {f"{k}.cls": b"%d" % k for k in (2, 0)}
    )
    source = open_source(path)
    assert [source.label(i) for i in range(3)] == [0, None, 1]
    assert source.skipped == ()


def test_numbers_of_classes_have_the_names_beside_them(tmp_path: Path) -> None:
    files = {f"{k}.png": png(k) for k in range(3)} | {f"{k}.cls": b"%d" % (k % 2) for k in range(3)}
    named = {f"{k}.json": b'{"class_name": "%s"}' % (b"owl", b"cat")[k % 2] for k in range(3)}
    assert open_source(write_tar(tmp_path / "a.tar", files | named)).classes == ("owl", "cat")
    named["2.json"] = b'{"class_name": "dog"}'
    assert open_source(write_tar(tmp_path / "b.tar", files | named)).classes == ("0", "1"), "two names of one number"


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("a-{000000..000004}.tar", r"2 of 5 files are missing, the first is .*a-000003\.tar"),
        ("a-{000005..000004}.tar", "expected 1 to 1,000,000 numbers"),
        ("{1..999999}{1..999999}.tar", "expected at most 1,000,000 names"),
    ],
)
def test_braces_that_stand_for_nothing(shards: Path, pattern: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        open_source(f"{shards}/{pattern}")


def test_braces(shards: Path) -> None:
    assert values(open_source(f"{shards}/a-{{000000,000002}}.tar")) == [0, 1, 4, 5]
    assert values(open_source(f"{shards}/a-00000{{0..1}}.tar")) == [0, 1, 2, 3]


def test_a_large_set_names_its_folders_and_not_its_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = {"train/cat/1.png": png(1), "train/dog/2.png": png(2), "val/cat/3.png": png(3)}
    path = write_tar(tmp_path / "a.tar", split)
    assert list(open_source(path).files()) == [f"{path}", f"{path}/train/cat/1.png", f"{path}/train/dog/2.png"]
    monkeypatch.setattr(archives, "LISTED", 0)
    assert list(open_source(path).files()) == [f"{path}", f"{path}/train/cat/", f"{path}/train/dog/"]
    assert list(open_source(path, role="val").files()) == [f"{path}", f"{path}/val/cat/"]
