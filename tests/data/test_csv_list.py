"""Images listed in a table of text: paths beside the table, labels by value, and what is refused."""

from pathlib import Path

import pytest

from hardpatch.data.columns import Columns
from hardpatch.data.reading import UndecodableImage
from hardpatch.data.sources import open_source
from hardpatch.data.summary import summarize
from hardpatch.errors import UserError
from tests.data.small import names, one_line, values, write_png


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for k, name in enumerate(("a.png", "b.png", "c.png")):
        write_png(tmp_path / "images" / name, k)
    return tmp_path


def write(folder: Path, text: str | bytes, name: str = "list.csv") -> Path:
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    return folder / name


def labels(path: Path, columns: Columns | None = None) -> list[str | None]:
    source = open_source(path, columns or Columns())
    numbers = [source.label(i) for i in range(len(source))]
    return [None if k is None or source.classes is None else source.classes[k] for k in numbers]


ROWS = "images/c.png,dog\nimages/a.png,cat\nimages/b.png,dog\n"


@pytest.mark.parametrize(
    "text",
    [
        f"path,label\n{ROWS}",
        ROWS,
        f"\ufefffile_name,category\r\n{ROWS}".replace("\n", "\r\n"),
        f"picture,what\n{ROWS}",
        "label;image\n" + "".join(";".join(reversed(line.split(","))) + "\n" for line in ROWS.split()),
        f'"path","label"\n\n{ROWS}\n'.replace("images/a.png", '"images/a.png"'),
        f"path,label\n{ROWS}".replace("images/", "images\\"),
        f"path,label,width\n{ROWS}".replace("dog", "dog,5").replace("cat", "cat,6"),
    ],
    ids=["header", "no header", "BOM and CRLF", "other names", "semicolons", "quotes", "backslashes", "more columns"],
)
def test_paths_and_labels(folder: Path, text: str) -> None:
    path = write(folder, text)
    source = open_source(path)
    assert names(source) == [str(folder / "images" / name) for name in ("c.png", "a.png", "b.png")]
    assert values(source) == [2, 0, 1]
    assert source.classes == ("cat", "dog")
    assert labels(path) == ["dog", "cat", "dog"]
    assert next(iter(source.files())) == str(path), "a change of the list is a change of the set"


def test_tabs_commas_in_names_and_absolute_paths(folder: Path) -> None:
    write_png(folder / "images" / "d, e.png", 7)
    assert labels(write(folder, f'{folder}/images/a.png,1\n"images/d, e.png",0\n')) == ["1", "0"]
    assert labels(write(folder, "path\tlabel\nimages/d, e.png\tcat, tame\n", "list.tsv")) == ["cat, tame"]


def test_numbers_are_sorted_by_value_and_gaps_are_no_classes(folder: Path) -> None:
    path = write(folder, "path,label\nimages/a.png,10\nimages/b.png,2.0\nimages/c.png,1000000000\n")
    assert open_source(path).classes == ("2", "10", "1000000000")
    assert labels(path) == ["10", "2", "1000000000"]
    assert labels(write(folder, "path,label\nimages/a.png,007\nimages/b.png,12\n")) == ["007", "12"], (
        "names, with zeros"
    )


def test_empty_labels_are_none(folder: Path) -> None:
    assert labels(write(folder, "path,label\nimages/a.png,\nimages/b.png,cat\n")) == [None, "cat"]
    assert open_source(write(folder, "path,label\nimages/a.png,\n")).classes is None
    assert open_source(write(folder, "images/a.png\nimages/b.png\n")).classes is None


def test_columns_are_chosen(folder: Path) -> None:
    path = write(folder, "left,right,fine_label,coarse_label\nimages/a.png,images/b.png,ant,animal\n")
    with pytest.raises(UserError, match="2 columns hold paths of images: left, right; choose one with --image_column"):
        open_source(path)
    source = open_source(path, Columns(image="right"))
    assert values(source) == [1]
    assert (
        "2 columns could hold the labels: fine_label, coarse_label; choose one with --label_column" in source.unlabeled
    )
    assert labels(path, Columns("left", "coarse_label")) == ["animal"]
    for columns, option in ((Columns(image="up"), "--image_column"), (Columns("left", "up"), "--label_column")):
        with pytest.raises(UserError, match=rf"{option}: .*no column 'up'; the columns are left, right, fine_label"):
            open_source(path, columns)
    assert labels(write(folder, "images/a.png,5,cat\n"), Columns(label="3")) == ["cat"], "without a header by number"


def test_two_columns_that_could_be_the_path(folder: Path) -> None:
    with pytest.raises(UserError, match="2 columns could hold the images: path, image; choose one with --image_column"):
        open_source(write(folder, "path,image,label\nimages/a.png,images/b.png,1\n"))


def test_missing_files_are_said_and_count_as_undecodable(folder: Path) -> None:
    source = open_source(write(folder, f"path,label\nimages/x.png,dog\n{ROWS}"))
    assert len(source) == 4
    assert "1 of the listed files do not exist (the first: images/x.png)" in summarize(source)
    with pytest.raises(UndecodableImage, match=r"images/x\.png: No such file"):
        source.image(0)


def test_what_is_no_image_is_left_out(folder: Path) -> None:
    source = open_source(write(folder, f"path,label\n{ROWS}images/d.psd,cat\n,dog\n"))
    assert values(source) == [2, 0, 1]
    assert "left out 1 files that are not images (1 .psd; the first: images/d.psd)" in summarize(source)
    assert f"left out 1 lines without a path (the first: {folder / 'list.csv'} line 6)" in summarize(source)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the table is empty"),
        ("path,label\n", "expected paths of images"),
        (
            "path,label\nx.png,1\ny.png,2\n",
            "none of the 2 listed files exists, the first: x.png; expected paths relative",
        ),
        ("path,label\nhttps://example.org/x.png,1\n", "none of the 1 listed files exists.*download the images first"),
        ("path,label\nimages/a.png,1\nimages/b.png\n", "line 3: expected 2 columns as in the first line, got 1"),
        ("path,label\nimages/a.psd,1\n", r"expected paths of images.*got 1 files that are not images \(1 \.psd"),
        ("id,label\n17,1\n", r"no column with paths of images \(\.jpg.*\); the columns are id, label"),
        ('path,label\n"images/a.png,1\n', "line 2: no readable CSV"),
        ("path,label\n".encode("utf-16"), "expected text in UTF-8, got UTF-16"),
    ],
)
def test_refusals(folder: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        open_source(write(folder, text))
    assert "list.csv" in one_line(error)


def test_a_folder_with_only_a_list_says_to_name_it(tmp_path: Path) -> None:
    path = write(tmp_path, "path,label\n/images/a.png,1\n")
    with pytest.raises(UserError, match=f"no images in this folder.*a list of images is named itself: {path}"):
        open_source(tmp_path)


def test_a_class_of_which_no_file_is_read_is_named(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png")
    (tmp_path / "list.csv").write_text("path,label\na.png,cat\nb.webm,owl\nb.webm,cat\n,dog\n")
    source = open_source(tmp_path / "list.csv")
    assert source.classes == ("cat",)
    assert "2 classes have no image: dog, owl" in source.notes
