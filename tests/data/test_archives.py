"""Images in .zip and .tar archives: the same bytes and labels as in a tree, each read alone, and what is refused."""

import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from hardpatch.data.columns import Columns
from hardpatch.data.reading import UndecodableImage
from hardpatch.data.sources import open_source
from hardpatch.data.summary import summarize
from hardpatch.errors import UserError
from tests.data.small import names, one_line, png, values

TREE = {"dog/b.png": png(2), "cat/a.png": png(1), "cat/deeper/c.PNG": png(3)}


def write_zip(path: Path, files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path: Path, files: Mapping[str, bytes], mode: str = "w") -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write(path: Path, files: Mapping[str, bytes]) -> Path:
    return write_zip(path, files) if path.suffix == ".zip" else write_tar(path, files)


@pytest.fixture(params=["a.zip", "a.tar"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / str(request.param)


def labels(path: Path, columns: Columns = Columns()) -> list[str | None]:  # noqa: B008
    source = open_source(path, columns)
    numbers = [source.label(i) for i in range(len(source))]
    return [None if k is None or source.classes is None else source.classes[k] for k in numbers]


@pytest.mark.parametrize("kind", ["stored", "deflated", "tar"])
def test_an_archive_is_read_as_a_tree(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("a.tar" if kind == "tar" else "a.zip")
    if kind == "tar":
        write_tar(path, TREE)
    else:
        write_zip(path, TREE, zipfile.ZIP_STORED if kind == "stored" else zipfile.ZIP_DEFLATED)
    source = open_source(path)
    assert names(source) == [f"{path}/cat/a.png", f"{path}/cat/deeper/c.PNG", f"{path}/dog/b.png"]
    assert values(source) == [1, 3, 2]
    assert [source.encoded(i) for i in range(3)] == [png(1), png(3), png(2)]
    assert source.classes == ("cat", "dog")
    assert [source.label(i) for i in range(3)] == [0, 0, 1]
    copy = pickle.loads(pickle.dumps(source))
    assert values(copy) == [1, 3, 2]
    assert names(copy) == names(source)


def test_hidden_entries_other_files_and_archives_within_are_counted(archive: Path) -> None:
    inner = {"__MACOSX/cat/._a.png": b"x", ".DS_Store": b"x", "notes.txt": b"x", "more.zip": b"PK"}
    source = open_source(write(archive, {**TREE, **inner}))
    assert values(source) == [1, 3, 2]
    assert source.classes == ("cat", "dog")
    assert {entry.reason: (entry.count, entry.kinds) for entry in source.skipped} == {
        "hidden files": (2, ""),
        "files that are not images": (2, "1 .txt, 1 .zip"),
    }
    assert f"left out 2 files that are not images (1 .txt, 1 .zip; the first: {archive}/notes.txt)" in summarize(source)


def test_classes_lie_below_the_folder_that_all_images_share(archive: Path) -> None:
    source = open_source(write(archive, {f"./set/{name}": content for name, content in TREE.items()}))
    assert source.classes == ("cat", "dog")
    assert "images below set/" in summarize(source)


def test_one_class_is_one_class(archive: Path) -> None:
    assert labels(write(archive, {"cat/a.png": png(1), "cat/b.png": png(2)})) == ["cat", "cat"]


def test_an_image_beside_the_class_folders_is_the_reason_for_no_labels(archive: Path) -> None:
    source = open_source(write(archive, {**TREE, "cover.png": png(9)}))
    assert source.classes is None
    assert source.unlabeled == "cover.png lies beside the folders of the classes"
    assert open_source(write(archive, {"a.png": png(1)})).unlabeled == ""


def test_folders_of_an_archive_without_an_image_are_named(archive: Path) -> None:
    write(archive, {"set/cat/1.png": png(1), "set/dog/2.png": png(2), "set/owl/3.webm": b"x", "readme.txt": b"x"})
    source = open_source(archive)
    assert source.classes == ("cat", "dog")
    assert source.notes == ["images below set/", "1 folders hold no image: owl"]


def test_several_folders_of_one_split_leave_the_others_out(archive: Path) -> None:
    write(archive, {"train_a/1.png": png(1), "train_b/2.png": png(2), "val/3.png": png(3)})
    assert values(open_source(archive)) == [1, 2]


def test_splits_within_an_archive_are_kept_apart(archive: Path) -> None:
    split = {"set/train/cat/1.png": png(1), "set/train/dog/2.png": png(2), "set/val/cat/3.png": png(3)}
    write(archive, split)
    train, val = open_source(archive), open_source(archive, role="val")
    assert (values(train), train.classes) == ([1, 2], ("cat", "dog"))
    assert (values(val), val.classes) == ([3], ("cat",))
    write(archive, {**split, **{name.replace("png", "cls"): b"5" for name in split}})
    assert [entry.reason for entry in open_source(archive).skipped] == ["images of the split validation"]
    assert "split train, images below set/train/, left out 1 images of the split validation" in summarize(train)
    assert list(train.files()) != list(val.files()), "features of one must not be taken for those of the other"


def test_webdataset_with_class_numbers(archive: Path) -> None:
    shard = {f"{k:04d}.{ending}": content for k in range(3) for ending, content in ((("png"), png(k)), ("cls", b"10"))}
    shard["0001.cls"] = b"2\n"
    assert labels(write(archive, shard)) == ["10", "2", "10"]
    assert open_source(archive).classes == ("2", "10"), "numbers are sorted as numbers"
    assert open_source(archive).skipped == ()
    assert "labels from .cls files" in summarize(open_source(archive))


def test_webdataset_with_json(archive: Path) -> None:
    fields = [{"label": "cat", "width": 5}, {"label": "dog"}, {"width": 5}]
    shard = {f"{k}.png": png(k) for k in range(3)}
    shard |= {f"{k}.json": json.dumps(value).encode() for k, value in enumerate(fields)}
    write(archive, shard | {"annotations.json": b"[]", "0.txt": b"a caption"})
    assert labels(archive) == ["cat", "dog", None]
    assert labels(archive, Columns(label="width")) == ["5", None, "5"]
    assert [str(entry).split(";")[0] for entry in open_source(archive).skipped] == [
        "2 files that are not images (1 .json, 1 .txt"
    ]
    with pytest.raises(UserError, match=r"--label_column: .* no \.json with the key 'kind'; the keys are label, width"):
        open_source(archive, Columns(label="kind"))


def test_several_keys_that_could_be_the_label(archive: Path) -> None:
    write(archive, {"a.png": png(1), "a.json": b'{"fine_label": 1, "coarse_label": 2}'})
    source = open_source(archive)
    assert source.classes is None
    assert "2 keys of the .json files could hold the labels: coarse_label, fine_label; choose" in source.unlabeled
    assert labels(archive, Columns(label="fine_label")) == ["1"]


def test_several_images_of_one_sample_share_its_label(archive: Path) -> None:
    files = {"x/7.left.png": png(1), "x/7.right.png": png(2), "x/7.cls": b"3", "x/8.left.png": png(3), "x/8.cls": b"4"}
    assert labels(write(archive, files)) == ["3", "3", "4"]


def test_a_folder_of_shards(tmp_path: Path) -> None:
    for name, first in (("train-000", 0), ("train-001", 2), ("val-000", 4)):
        shard = {f"{k}.png": png(k) for k in range(first, first + 2)}
        write_tar(tmp_path / f"{name}.tar", shard | {f"{k}.cls": str(k % 2).encode() for k in range(first, first + 2)})
    train, val = open_source(tmp_path), open_source(tmp_path, role="val")
    assert (values(train), values(val)) == ([0, 1, 2, 3], [4, 5])
    assert (train.classes, val.classes) == (("0", "1"), ("0", "1"))
    assert f"split train, labels from .cls files, left out 1 archives of the split validation (the first: {tmp_path}"
    assert values(open_source(f"{tmp_path}/train-*.tar")) == [0, 1, 2, 3]
    assert values(open_source(f"{tmp_path}/*.tar")) == [0, 1, 2, 3, 4, 5]


def test_a_later_entry_of_the_same_name_is_read(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {"a.png": png(1)})
    with tarfile.open(tmp_path / "a.tar", "a") as archive:
        member = tarfile.TarInfo("a.png")
        member.size = len(png(2))
        archive.addfile(member, io.BytesIO(png(2)))
    source = open_source(tmp_path / "a.tar")
    assert values(source) == [2]
    assert "left out 1 files that a later one of the same name replaces" in summarize(source)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    source = open_source(write_tar(tmp_path / "a.tar", {"caf\udce9/a.png": png(5)}))
    assert values(source) == [5]
    assert source.classes == ("caf\\xe9",)


def test_a_file_of_no_bytes_and_one_that_is_no_image(archive: Path) -> None:
    source = open_source(write(archive, {"a.png": b"", "b.png": b"junk", "c.png": png(1)}))
    for i, reason in ((0, "empty file"), (1, "not a JPEG")):
        with pytest.raises(UndecodableImage, match=rf"{archive.name}/{'ab'[i]}\.png: {reason}"):
            source.image(i)


# damage and refusals


def test_damage_within_a_zip_is_noticed_by_its_checksum(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.bmp": b"BM" + bytes(400), "b.png": png(2)}, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    source = open_source(path)
    with pytest.raises(UndecodableImage, match=r"a\.zip/a\.bmp: damaged in the archive \(its checksum differs\)"):
        source.image(0)
    assert source.image(1)[0, 0, 0] == 2


def test_an_archive_that_shrinks_after_it_was_opened(archive: Path) -> None:
    source = open_source(write(archive, {"a.png": png(1)}))
    archive.write_bytes(archive.read_bytes()[:20])
    with pytest.raises(UndecodableImage, match=r"a\.png: (cut off|no header)"):
        source.image(0)
    archive.unlink()
    with pytest.raises(UndecodableImage, match="No such file"):
        source.image(0)


@pytest.mark.parametrize("keep", [0, 10, 600, 1100, 1700])
def test_cut_off_archives_are_refused(tmp_path: Path, keep: int) -> None:
    noise = {f"{k}.png": bytes(range(256)) * 2 for k in range(3)}
    for path in (write_zip(tmp_path / "a.zip", noise, zipfile.ZIP_STORED), write_tar(tmp_path / "a.tar", noise)):
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(UserError, match=r"a\.(zip|tar): .*cut off.*copy it again") as error:
            open_source(path)
        one_line(error)


def test_a_damaged_header_is_not_taken_for_the_end_of_a_tar(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {f"{k}.png": png(k) for k in range(4)})
    content = bytearray(path.read_bytes())
    content[2 * 1024 + 5] ^= 255
    path.write_bytes(content)
    with pytest.raises(UserError, match="cut off or damaged after 2 files"):
        open_source(path)


def test_joined_tars_are_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"a.png": png(1)})
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(UserError, match="goes on behind its end mark after 1 files"):
        open_source(path)


@pytest.mark.parametrize(
    ("name", "mode"), [("a.tar.gz", "w:gz"), ("a.tgz", "w:gz"), ("a.tar", "w:gz"), ("b.tar.xz", "w:xz")]
)
def test_archives_that_cannot_be_read_in_place(tmp_path: Path, name: str, mode: str) -> None:
    write_tar(tmp_path / name, TREE, mode)
    for path in (tmp_path / name, tmp_path):
        with pytest.raises(UserError, match=r"compressed as a whole.*cannot be read one by one; (gunzip|unpack) it"):
            open_source(path)


def test_encrypted_zips(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.png": png(1), "b.png": png(2)}, zipfile.ZIP_STORED)
    content = path.read_bytes()
    first = content.index(b"PK\1\2")
    for mark in (first, content.index(b"PK\1\2", first + 1)):
        content = content[: mark + 8] + b"\1" + content[mark + 9 :]  # the flag in the index
        path.write_bytes(content)
        if mark == first:
            source = open_source(path)
            assert values(source) == [2]
            assert f"left out 1 encrypted files (the first: {path}/a.png)" in summarize(source)
    with pytest.raises(UserError, match=r"a\.zip: expected an archive without a password.*unpack it"):
        open_source(path)


def test_an_archive_without_images(archive: Path) -> None:
    with pytest.raises(UserError, match=r"no images in this archive; expected \.jpg.*got 1 files .* \(1 \.zip"):
        open_source(write(archive, {"inner.zip": b"PK"}))
    with pytest.raises(UserError, match="got nothing"):
        open_source(write(archive, {}))


def test_a_compression_that_few_programs_write(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.zip", {"a.png": png(1)}, zipfile.ZIP_BZIP2)
    with pytest.raises(UserError, match="got 1 files that are neither stored nor deflated"):
        open_source(path)


def test_an_archive_takes_little_memory(tmp_path: Path) -> None:
    files = {f"n{k // 100:08d}/n{k // 100:08d}_{k:06d}.png": b"x" for k in range(5000)}
    source = open_source(write_zip(tmp_path / "a.zip", files, zipfile.ZIP_STORED))
    assert len(pickle.dumps(source)) < 100 * len(files)
