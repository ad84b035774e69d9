import os
import pickle
from pathlib import Path

import pytest

from hardpatch.data.folders import FileSource, PassedBy, list_images
from hardpatch.data.reading import GRAY as GRAYSCALE
from hardpatch.data.reading import Reading, UndecodableImage
from hardpatch.data.sources import open_source
from hardpatch.data.summary import summarize
from hardpatch.errors import UserError
from tests.data.small import names, png, values, write_png


def test_flat_folder_is_unlabeled_and_sorted(tmp_path: Path) -> None:
    for k, name in enumerate(["b.png", "a.PNG", "c.Jpeg", "d.webp", "e.TIF", "f.tiff", "g.bmp", "h.jpg"]):
        write_png(tmp_path / name, k)
    source = open_source(tmp_path)
    assert names(source) == sorted(str(path) for path in tmp_path.iterdir())
    assert values(source) == [1, 0, 2, 3, 4, 5, 6, 7]
    assert source.classes is None
    assert source.label(0) is None
    assert source.skipped == ()


def test_top_level_folders_are_classes(tmp_path: Path) -> None:
    write_png(tmp_path / "dog" / "1.png", 1)
    write_png(tmp_path / "cat" / "2.png", 2)
    write_png(tmp_path / "cat" / "deeper" / "3.png", 3)
    (tmp_path / "empty").mkdir()
    source = open_source(str(tmp_path))
    assert source.classes == ("cat", "dog")
    assert values(source) == [2, 3, 1]
    assert [source.label(i) for i in range(3)] == [0, 0, 1]


def test_folders_without_an_image_are_named(tmp_path: Path) -> None:
    for name in ("dog/1.png", "cat/2.png"):
        write_png(tmp_path / name)
    assert open_source(tmp_path).notes == []
    for name in ("owl/1.webm", "dog/notes.txt", ".cache/1.txt"):
        write_png(tmp_path / name)
    (tmp_path / "gone").mkdir()
    (tmp_path / "gone" / "1.png").symlink_to("nowhere.png")
    (tmp_path / "empty" / "deeper").mkdir(parents=True)
    source = open_source(tmp_path)
    assert source.classes == ("cat", "dog")
    assert source.notes == ["3 folders hold no image: empty, gone, owl"]
    assert open_source(f"{tmp_path}/*").notes == ["1 folders hold no image: owl"]


def test_folders_of_splits_are_kept_apart(tmp_path: Path) -> None:
    for k, name in enumerate(["Train/cat/1.png", "Train/dog/2.png", "val/cat/3.png", "test/4.png", "Train/owl/x.webm"]):
        write_png(tmp_path / name, k)
    train, val = open_source(tmp_path), open_source(tmp_path, role="val")
    assert (values(train), values(val)) == ([0, 1], [2])
    assert (train.classes, val.classes) == (("cat", "dog"), ("cat",))
    assert train.notes == ["split train", "images below Train/", "1 folders hold no image: owl"]
    assert [str(entry) for entry in train.skipped[1:]] == [
        f"1 images of the split test (the first: {tmp_path / 'test' / '4.png'})",
        f"1 images of the split validation (the first: {tmp_path / 'val' / 'cat' / '3.png'})",
    ]
    pattern = open_source(f"{tmp_path}/*")
    assert values(pattern) == [0, 1, 3, 2]
    assert "folders of several splits: 1 of split train, 1 of split test, 1 of split validation" in pattern.notes
    write_png(tmp_path / "extra" / "5.png")
    write_png(tmp_path / "cover.png")
    assert values(open_source(tmp_path)) == [0, 1]
    assert "left out 2 images of no split" in summarize(open_source(tmp_path))


def test_folders_of_classes_that_sound_like_splits_are_classes(tmp_path: Path) -> None:
    for name in ("bullet train/1.png", "test tube/2.png", "owl/3.png"):
        write_png(tmp_path / name)
    assert open_source(tmp_path).classes == ("bullet train", "owl", "test tube")


def test_splits_of_which_none_is_meant_are_refused(tmp_path: Path) -> None:
    for name in ("val/cat/1.png", "test/cat/2.png"):
        write_png(tmp_path / name)
    with pytest.raises(UserError, match=r"expected folders of one split, got .*; name one, such as .*/test$"):
        open_source(tmp_path)


def test_image_beside_the_folders_makes_the_tree_unlabeled(tmp_path: Path) -> None:
    write_png(tmp_path / "dog" / "1.png")
    write_png(tmp_path / "cover.png")
    source = open_source(tmp_path)
    assert len(source) == 2
    assert source.classes is None


def test_other_files_are_listed_as_skipped_and_hidden_ones_ignored(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "labels.csv").write_text("x")
    write_png(tmp_path / "._a.png")
    write_png(tmp_path / ".cache" / "b.png")
    source = open_source(tmp_path)
    assert names(source) == [str(tmp_path / "a.png")]
    (entry,) = source.skipped
    assert str(entry) == f"2 files that are not images (1 .txt, 1 .csv; the first: {tmp_path / 'notes.txt'})"


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    write_png(tmp_path / "elsewhere" / "far.png", 9)
    root = tmp_path / "root"
    write_png(root / "a" / "near.png", 1)
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "again.png").symlink_to(root / "a" / "near.png")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "out").symlink_to(tmp_path)
    (root / "gone.png").symlink_to(tmp_path / "nowhere.png")
    source = open_source(root)
    assert [os.path.relpath(name, root) for name in names(source)] == [
        "a/again.png",
        "a/near.png",
        "a/out/elsewhere/far.png",
        "b/far.png",
    ]
    assert values(source) == [1, 1, 9, 9]
    assert [*map(str, source.skipped)] == [f"1 links that lead nowhere (the first: {root / 'gone.png'})"]


def test_a_folder_of_links_that_lead_nowhere(tmp_path: Path) -> None:
    for k in range(3):
        (tmp_path / f"{k}.png").symlink_to(tmp_path / "unmounted" / f"{k}.png")
    with pytest.raises(
        UserError, match=r"no images in this folder; .*3 links that lead nowhere \(the first: .*0\.png\)"
    ):
        open_source(tmp_path)


def test_what_a_listing_passes_by(tmp_path: Path) -> None:
    write_png(tmp_path / "a" / ".hidden.png")
    write_png(tmp_path / "a" / "b" / "1.png")
    (tmp_path / "gone").symlink_to("nowhere")
    passed = PassedBy()
    assert list_images(tmp_path, passed) == (["a/b/1.png"], [])
    assert (passed.dangling, passed.hidden, passed.folders) == (["gone"], ["a/.hidden.png"], ["a", "a/b"])


def test_two_folders_that_link_to_each_other(tmp_path: Path) -> None:
    write_png(tmp_path / "a" / "1.png", 1)
    write_png(tmp_path / "b" / "2.png", 2)
    (tmp_path / "a" / "to_b").symlink_to(tmp_path / "b")
    (tmp_path / "b" / "to_a").symlink_to(tmp_path / "a")
    assert values(open_source(tmp_path)) == [1, 2, 2, 1]


def test_names_with_any_characters(tmp_path: Path) -> None:
    file_names = ["Überraschung ☃.png", "a\nb.png", "ü.png"]
    for name in file_names:
        write_png(tmp_path / name)
    assert sorted(names(open_source(tmp_path))) == sorted(str(tmp_path / name) for name in file_names)


def test_paths_are_stored_compactly() -> None:
    paths = [f"n{k // 1000:08d}/n{k // 1000:08d}_{k:06d}.JPEG" for k in range(20_000)]
    source = FileSource("/data", paths, classes=sorted({path.split("/")[0] for path in paths}))
    assert len(pickle.dumps(source)) < 60 * len(paths)
    assert names(source) == [os.path.join("/data", path) for path in paths]
    assert source.label(19_999) == 19


def test_a_single_image(tmp_path: Path) -> None:
    source = open_source(write_png(tmp_path / "one.png", 7))
    assert values(source) == [7]
    assert names(source) == [str(tmp_path / "one.png")]
    assert source.classes is None


def test_errors_name_the_file_and_the_reason(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png").write_bytes(png(0)[:45])
    gone = write_png(tmp_path / "b.png")
    source = open_source(tmp_path)
    gone.unlink()
    with pytest.raises(UndecodableImage, match=r"a\.png: image file is truncated"):
        source.image(0)
    with pytest.raises(UndecodableImage, match=r"b\.png: No such file"):
        source.image(1)


def test_channels(tmp_path: Path) -> None:
    source = open_source(write_png(tmp_path / "a.png", 8))
    assert source.image(0, GRAYSCALE).shape == (6, 5, 1)
    with pytest.raises(UndecodableImage, match=r"a\.png: 3 channels; expected 13: set data\.channels to 3"):
        source.image(0, Reading(13))


def test_real_folder_with_gray_files_among_the_colored(shared: Path) -> None:
    source = open_source(shared / "data" / "caltech100_128" / "test")
    assert len(source) == 789
    assert source.classes is not None
    assert len(source.classes) == 100
    for i in range(len(source)):
        pixels = source.image(i)
        assert max(pixels.shape) <= 128
        assert pixels.shape[2] == 3
