"""Classes of a set: numbers, names, color tables, ADE20K, and what is ignored."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hardpatch.errors import UserError
from hardpatch.segment.check import check_sets
from hardpatch.segment.data import open_segmentation
from hardpatch.segment.labels import IGNORED, Labels, find_labels
from tests.segment.small import THREE, write_pair


def test_classes(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("0 Sky\n1 Sign Symbol\n\n11 Unlabeled (ignore)\n")
    labels = find_labels(tmp_path)
    assert labels == Labels(("Sky", "Sign Symbol"), (0, 1), (11, 255))
    assert find_labels(tmp_path / "train") == labels  # the folder above
    assert find_labels(tmp_path, ignore=[7, 9]).ignored == (7, 9, 11)
    (tmp_path / "names").write_text("sky\nroad\ncar\n")
    names = str(tmp_path / "names")
    assert find_labels(tmp_path, names) == THREE
    eaten = find_labels(tmp_path, names, ignore=[1, 255])
    assert (eaten.names, eaten.values, eaten.ignored, eaten.chosen) == (("sky", "car"), (0, 2), (1, 255), True)
    assert eaten.said == ("--ignore: no class any more: road",)
    assert find_labels(tmp_path, names, reduce_zero_label=True) == Labels(("sky", "road", "car"), (1, 2, 3), (0, 255))
    assert find_labels(tmp_path, "2") == Labels(("class 0", "class 1"), (0, 1), (255,))


def test_255_as_a_class(tmp_path: Path) -> None:
    """A class that is listed is ignored only where the user says so."""
    (tmp_path / "classes.txt").write_text("0 background\n255 object\n")
    assert find_labels(tmp_path) == Labels(("background", "object"), (0, 255), ())
    (tmp_path / "classes.txt").write_text("0 background\n1 object\n255 border (ignore)\n")
    assert find_labels(tmp_path).chosen


def test_wide_values(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("26001 car\n24000 person\n")
    assert find_labels(tmp_path) == Labels(("person", "car"), (24000, 26001), (255,))


RED_GREEN = Labels(("void", "red", "green"), (0, 1, 2), (255,), (0, 0x800000, 0x008000))


@pytest.mark.parametrize(
    "text",
    [
        "0 0 0 void\n128 0 0 red\n0 128 0 green",
        "0\t0\t0\tvoid\n128\t0\t0\tred\n0\t128\t0\tgreen",  # CamVid's label_colors.txt
        "void 0 0 0\nred 128, 0, 0\ngreen 0,128,0",
        "name,r,g,b\nvoid,0,0,0\nred,128,0,0\ngreen,0,128,0",  # class_dict.csv
        "# label:color_rgb:parts:actions\nvoid:0,0,0::\nred:128,0,0::\ngreen:0,128,0::",  # CVAT
        "#000000 void\n#800000 red\n#008000 green",
        "void #000000\nred #800000\ngreen #008000",
        "0 void 0 0 0\n1 red 128 0 0\n2 green 0 128 0",
        "2 0 128 0 green\n0 0 0 0 void\n1 128 0 0 red",
    ],
)
def test_color_tables(tmp_path: Path, text: str) -> None:
    (tmp_path / "classes.txt").write_text(text)
    assert find_labels(tmp_path) == RED_GREEN


def test_an_ignored_color(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("0 0 0 nothing (ignore)\n128 0 0 red\n0 128 0 green")
    labels = find_labels(tmp_path)
    assert (labels.names, labels.values, labels.ignored) == (("red", "green"), (1, 2), (0, 255))
    assert (labels.colors, labels.ignored_colors) == ((0x800000, 0x008000), (0,))


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        (None, {}, r"--classes: expected a number of classes or a file that names them; .* has no classes\.txt"),
        (None, {"classes": "1"}, r"--classes: expected 2 to 255 classes, got 1"),
        (None, {"classes": "300"}, r"--classes: expected 2 to 255 classes, got 300"),
        (None, {"classes": "3", "ignore": [65536]}, r"--ignore: expected values from 0 to 65535, got 65536"),
        (None, {"classes": "nowhere.txt"}, r"expected a number or a text file of class names, got nowhere\.txt"),
        ("0 a\n0 b\n", {}, r"names an index twice"),
        ("70000 a\n0 b\n", {}, r"--classes: expected indices up to 65535, got 70000"),
        ("0 0 0 a\n0 0 0 b\n", {}, r"names a color twice"),
        ("0 road\n1 car\n2 road\n", {}, r"has the name 'road' 2 times; expected a name of its own for each class"),
        ("0 0 0 a\n0 0 300 b\n", {}, r"expected colors from 0 to 255, got '0 0 300 b'"),
        ("0 0 0 a\nroad\n", {}, r"expected a color in each line or in none, got 'road'"),
        ("a\nb", {"ignore": [0]}, r"--ignore: 0 is the class a; without it b is left, expected two classes or more"),
        ("a\nb", {"threshold": 0}, r"--threshold: expected a value from 1 to 65535, got 0"),
        ("a\nb\nc", {"threshold": 9}, r"--threshold: expected two classes, below and from the threshold on, got 3"),
        ("a\nb", {"threshold": 9, "ignore": [255]}, r"--threshold: gives every pixel .*; leave --ignore out"),
        ("a\nb", {"threshold": 9, "reduce_zero_label": True}, r"leave --reduce_zero_label out"),
    ],
)
def test_wrong_classes(tmp_path: Path, text: str | None, options: dict[str, Any], message: str) -> None:
    if text is not None:
        (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        find_labels(tmp_path, **options)
    assert "\n" not in str(error.value)


@pytest.fixture
def ade20k(tmp_path: Path) -> Path:
    values = np.array([[0, 1], [150, 2]])
    write_pair(tmp_path / "images" / "training", tmp_path / "annotations" / "training", "ADE_train_00000001", values)
    write_pair(tmp_path / "images" / "validation", tmp_path / "annotations" / "validation", "ADE_val_1", values)
    return tmp_path


def test_ade20k(ade20k: Path) -> None:
    labels = find_labels(ade20k)
    assert labels.names[0] == "class 1"
    assert (len(labels.names), labels.values, labels.ignored) == (150, tuple(range(1, 151)), (0, 255))
    assert labels.said == ("--train: ADE20K by the names of its folders: value 0 is ignored, 1 the first class",)
    table = "Idx\tRatio\tTrain\tVal\tStuff\tName\n"
    table += "".join(f"{k}\t0.1\t1\t1\t0\tthing {k}, item\n" for k in range(1, 151))
    (ade20k / "objectInfo150.txt").write_text(table)
    labels = find_labels(ade20k)
    assert labels.names[149] == "thing 150"
    sets = {"train": open_segmentation(ade20k, "train", labels), "val": open_segmentation(ade20k, "val", labels)}
    checked = check_sets(sets)
    for split, pairs in checked.sets.items():
        assert pairs.label_map(0).tolist() == [[IGNORED, 0], [149, 1]]
        assert checked.pixels[split].sum() == 3
        assert checked.pixels[split][[0, 1, 149]].tolist() == [1, 1, 1]
    assert "value 0 -> ignored: train  25.00%  val  25.00%" in checked.said
    missing = ", ".join(f"thing {k}" for k in range(3, 11))
    assert checked.warnings == [
        f"--train: 147 classes without a pixel, not learned: {missing} and 139 more",
        f"--val: 147 classes without a pixel, not measured unless predicted: {missing} and 139 more",
    ]


def test_the_zero_class_of_ade20k_can_be_kept(ade20k: Path) -> None:
    labels = find_labels(ade20k, reduce_zero_label=False)
    assert (len(labels.names), labels.names[:2], labels.values[0]) == (151, ("other", "class 1"), 0)
    again = find_labels(ade20k, ignore=[0])
    assert (again.values[0], again.ignored) == (1, (0,))
    assert again.said[1].startswith("--ignore 0: 0 is ignored by --reduce_zero_label already")


def test_other_sets_may_call_their_folders_like_ade20k(ade20k: Path) -> None:
    """Classes of the set's own keep value 0, unless the table of ADE20K lies beside them."""
    assert find_labels(ade20k, "3").values == (0, 1, 2)
    (ade20k / "classes.txt").write_text("sky\nroad\ncar\n")
    assert find_labels(ade20k) == THREE
    (ade20k / "objectInfo150.txt").write_text("")
    assert find_labels(ade20k).values == (1, 2, 3)
