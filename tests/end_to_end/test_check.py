"""hardpatch check: what is said about a set, its exit codes, and that nothing is changed."""

import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml
from PIL import Image

import hardpatch
from hardpatch.cli import main
from hardpatch.data.reading import Reading
from hardpatch.errors import UserError
from tests.data.small import MANY_WORKERS, make_folder, png, write_parquet, write_png
from tests.end_to_end.test_any_image import SMALL, write_mixed, write_set

pytestmark = pytest.mark.filterwarnings(MANY_WORKERS)


def lines(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0, workers: int = 0) -> list[str]:
    """Run a check and return what it prints."""
    capsys.readouterr()
    assert main(["check", *map(str, arguments), "--workers", str(workers)]) == code
    return capsys.readouterr().out.splitlines()


def row(printed: list[str], name: str) -> str:
    """Return the text of the only row of a name."""
    (found,) = [line for line in printed if line.startswith(f"{name} ")]
    return found.removeprefix(name).strip()


def rows(printed: list[str], name: str) -> list[str]:
    return [line.removeprefix(name).strip() for line in printed if line.startswith(f"{name} ")]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_good_set(tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int) -> None:
    make_folder(tmp_path, 31)
    printed = lines(capsys, tmp_path, "--labels", workers=workers)
    assert row(printed, "images") == "31 images, 3 classes"
    assert row(printed, "readable") == "31 of 31"
    assert row(printed, "formats") == "31 PNG"
    assert row(printed, "height") == "20 to 20 pixels, median 20"
    assert row(printed, "width") == "24 to 24 pixels, median 24"
    assert row(printed, "channels") == "31 of 3"
    assert row(printed, "depth") == "31 of uint8, values 0 to 255 of 0 to 255"
    assert row(printed, "balance") == "smallest '1' with 10, largest '0' with 11, ratio 1.1"
    assert row(printed, "settings").endswith(" --data.range=[0,255] --data.channels=3")
    assert printed[-1] == f"{tmp_path}: nothing is refused"
    assert rows(printed, "note") == rows(printed, "warning") == rows(printed, "refused") == []


def test_broken_images_up_to_the_limit_and_above(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path, 40, broken=(0, 5, 10, 20))
    printed = lines(capsys, tmp_path)
    assert row(printed, "warning") == "4 of 40 images cannot be decoded (10.00%); training leaves them out"
    assert sum(line.strip().startswith(str(tmp_path)) and "not a JPEG" in line for line in printed) == 4
    for i in range(21, 33):
        (tmp_path / f"{i % 3}" / f"{i:03d}.png").write_bytes(b"")
    printed = lines(capsys, tmp_path, code=1)
    assert row(printed, "refused").startswith("16 of 40 images cannot be decoded (40.00%); at most 10% may be: raise")
    assert sum(line.startswith("  ") for line in printed) == 11, "ten names, and how many more there are"
    assert "and 6 more, all of them in --json" in printed[-2]
    assert main(["check", str(tmp_path), "--workers", "0", "--json", str(tmp_path / "x.json")]) == 1
    (finding,) = [
        each for each in json.loads((tmp_path / "x.json").read_text())["findings"] if each["level"] == "refused"
    ]
    assert (finding["kind"], len(finding["names"])) == ("broken", 16)


def test_what_is_left_out_of_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path, 9)
    (tmp_path / "0" / "notes.txt").write_text("x")
    (tmp_path / "1" / "gone.png").symlink_to("nowhere.png")
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost" / "1.png").symlink_to("nowhere.png")
    (tmp_path / "empty" / "deeper").mkdir(parents=True)
    write_png(tmp_path / "1" / ".h.png")
    before = sorted(os.walk(tmp_path))
    printed = lines(capsys, tmp_path, "--labels")
    assert rows(printed, "note") == [
        f"1 hidden files or folders are left out (the first: {tmp_path / '1' / '.h.png'})",
    ]
    assert "left out 1 files that are not images (1 .txt; the first: " in row(printed, "images")
    first = f"{tmp_path / '1' / 'gone.png'} -> nowhere.png"
    assert rows(printed, "warning") == [
        f"left out: 2 links lead nowhere (the first: {first})",
        "2 folders hold no image: empty, lost; in lost links lead nowhere",
    ]
    assert sorted(os.walk(tmp_path)) == before, "nothing is changed"


def test_classes_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path / "outer" / "set", 6)
    outer = tmp_path / "outer"
    expected = f"one class, 'set'; look one level lower: {outer / 'set'}"
    assert row(lines(capsys, outer), "warning") == expected
    assert row(lines(capsys, outer, "--labels", code=1), "refused") == expected
    stray = write_png(outer / "set" / "preview.png")
    printed = lines(capsys, outer / "set", "--labels", code=1)
    text = f"1 images lie beside 3 folders of images, so there are no classes: {stray}; move or remove them"
    assert row(printed, "refused") == text
    make_folder(tmp_path / "flat", 3, labeled=False)
    assert row(lines(capsys, tmp_path / "flat", "--labels", code=1), "refused").startswith("the images have no labels")
    assert lines(capsys, tmp_path / "flat")[-1] == f"{tmp_path / 'flat'}: nothing is refused"


def test_a_class_whose_images_are_all_broken_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path, 30)
    (tmp_path / "rotten").mkdir()
    (tmp_path / "rotten" / "1.png").write_bytes(b"x")
    printed = lines(capsys, tmp_path, "--labels")
    assert "1 classes without an image that can be read: rotten" in rows(printed, "warning")


def test_one_class_in_two_unicode_forms(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_png(tmp_path / "caf\u00e9" / "1.png", 1)
    write_png(tmp_path / "cafe\u0301" / "2.png", 2)
    text = "folders of one name in two Unicode forms are one class: 'cafe\\u0301', 'caf\\xe9'"
    assert text in rows(lines(capsys, tmp_path), "note")


def test_duplicates_also_between_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (("a/1", 200), ("a/2", 200), ("a/3", 100), ("b/4", 100), ("b/5", 210)):
        write_png(tmp_path / f"{name}.png", value)
    printed = lines(capsys, tmp_path)
    assert rows(printed, "warning") == [
        "2 images are there more than once, 2 copies",
        "1 images are there in more than one class, 1 copies",
    ]
    between = f"{tmp_path / 'a' / '3.png'} = {tmp_path / 'b' / '4.png'}"
    assert [line.strip() for line in printed].count(between) == 2


def test_channels_depth_orientation_transparency_and_pages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 6, 4), dtype=np.uint8)
    for k in range(20):
        Image.fromarray(noise[:, :, :3] - np.uint8(k)).save(tmp_path / f"{k:02d}.png")
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(noise[:, :, :3]).save(tmp_path / "turned.jpg", exif=exif)
    Image.fromarray(noise).save(tmp_path / "clear.png")
    Image.fromarray(noise[:, :, 0]).save(tmp_path / "gray.png")
    tifffile.imwrite(tmp_path / "deep.tif", noise[:, :, 0].astype(np.uint16))
    tifffile.imwrite(tmp_path / "stack.tif", noise[:, :, :2].transpose(2, 0, 1), photometric="minisblack")
    printed = lines(capsys, tmp_path)
    assert row(printed, "height") == "6 to 8 pixels, median 8", "the size of the upright picture"
    assert rows(printed, "note") == [
        f"1 are stored turned and read upright by their EXIF (the first: {tmp_path / 'turned.jpg'})",
        f"1 have transparency, shown on --data.background (the first: {tmp_path / 'clear.png'})",
        f"gray and color, 2 as {tmp_path / 'deep.tif'} and 22 as {tmp_path / '00.png'}; gray is repeated for RGB",
        f"the greatest value of 1 images of type uint16 is {noise[:, :, 0].max()} of 65535 ({tmp_path / 'deep.tif'}); "
        "data.range auto measures it",
    ]
    assert rows(printed, "warning")[1:] == [
        f"1 files have several pages or frames, up to 2 (the first: {tmp_path / 'stack.tif'}); they count as broken "
        "unless --data.pages is first, all or channels",
        f"the images have different types: 23 of uint8 as {tmp_path / '00.png'}; 1 of uint16 as "
        f"{tmp_path / 'deep.tif'}; each is brought to 0 to 1 by its range",
    ]


def test_channels_that_cannot_be_read_together_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for channels in (2, 4):
        pixels = np.full((4, 4, channels), 200, np.uint8)
        tifffile.imwrite(tmp_path / f"{channels}.tif", pixels, photometric="minisblack", planarconfig="contig")
    printed = lines(capsys, tmp_path, code=1)
    assert row(printed, "refused").startswith("data.channels: the images have different channels")
    assert rows(printed, "settings") == []


def test_dark_bytes_and_values_that_are_no_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_png(tmp_path / "a" / "mask.png", 1)
    text = f"the greatest value of 1 images of type uint8 is 1 of 255 ({tmp_path / 'a' / 'mask.png'}); set --data.range"
    assert row(lines(capsys, tmp_path / "a"), "warning") == text
    (tmp_path / "b").mkdir()
    np.save(tmp_path / "b" / "1.npy", np.array([[np.nan, -2.0], [3.0, np.inf]], np.float32))
    printed = lines(capsys, tmp_path / "b")
    assert row(printed, "depth") == "1 of float32, values -2 to 3, 1 values below 0"
    assert row(printed, "warning").startswith("2 values are NaN or infinite and become the ends of the range: ")


def test_parquet_and_the_function(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", [png(200), png(100), None], [0, 0, None], ["cat", "dog"])
    result = hardpatch.check(tmp_path, labels=True, workers=0)
    assert result.refused
    assert {finding.kind: finding.level for finding in result.findings} == {
        "broken": "refused",
        "classes_without_images": "warning",
        "one_class": "refused",
    }
    values = result.to_dict()
    assert (values["images"], values["readable"], values["classes"]) == (3, 2, {"cat": 2, "dog": 0})
    assert values["types"] == {"uint8": {"images": 2, "values": [100, 200], "range": [0, 255]}}


def test_json_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path, 6)
    values = json.loads("\n".join(lines(capsys, tmp_path, "--json")))
    assert (values["images"], values["refused"], values["findings"]) == (6, False, [])
    assert values["sizes"] == {"height": [20, 20, 20], "width": [24, 24, 24]}
    assert values["statistics"]["channels"] == 3


def pretrained(images: Path, out: Path, settings: list[str], *more: str) -> Reading:
    """Pre-train for a step with the settings that a check recommends, and return how the images are read."""
    arguments = [argument for setting in settings for argument in shlex.split(setting)]  # as a shell takes them
    assert main(["pretrain", "--data", str(images), "--out", str(out), *SMALL, "--steps=1", *more, *arguments]) == 0
    return hardpatch.load(out).reading


@pytest.mark.parametrize("kind", ["13 bands", "floats", "not square", "mixed"])
def test_recommended_settings_are_those_of_a_training(kind: str, tmp_path: Path) -> None:
    images, json_file, out = tmp_path / "images", tmp_path / "check.json", tmp_path / "run"
    if kind == "mixed":
        write_mixed(images)
    else:
        channels, dtype = {"13 bands": (13, "uint16"), "floats": (1, "float32"), "not square": (3, "uint16")}[kind]
        write_set(images, channels, dtype, size=(12, 60) if kind == "not square" else (20, 28))
    if kind == "floats":
        np.save(images / "class0" / "holes.npy", np.array([[np.nan, -9.0], [1.5e-7, np.inf]], np.float32))
    assert main(["check", str(images), "--workers", "0", "--json", str(json_file)]) == 0
    statistics = json.loads(json_file.read_text())["statistics"]
    size = ("--data.image_size=[8,40]",) if kind == "not square" else ()
    reading = pretrained(images, out, statistics["settings"], *size)
    assert (reading.number, reading.dtype) == (statistics["channels"], statistics["dtype"])
    assert (reading.low[0], reading.high[0]) == pytest.approx(statistics["range"], rel=1e-6)
    config = yaml.safe_load((out / "config.yaml").read_text())
    assert config["data"]["mean"] == pytest.approx(statistics["mean"], rel=1e-4)
    if kind == "floats":
        line = "2 values in 1 of them are NaN or infinite and become the ends of the range"
        assert f"data.range: 13 images looked at: {line}" in (out / "log.txt").read_text()


@pytest.mark.parametrize(
    ("options", "images", "channels"),
    [
        (["--pages", "first"], 4, 1),
        (["--data.pages=all"], 12, 1),
        (["--pages", "channels"], 4, 3),
        (["--pages", "channels", "--channels", "[2,0]"], 4, 2),
        (["--pages", "all", "--bands", '["*a.tif", "*b.tif"]'], 2, 2),
    ],
)
def test_settings_of_the_reading(
    options: list[str], images: int, channels: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(4):
        pages = rng.integers(0, 3000, (1 if "--bands" in options else 3, 20, 24), dtype=np.uint16)
        tifffile.imwrite(folder / f"{k // 2}{'ab'[k % 2]}.tif", pages, photometric="minisblack")
    if "--bands" not in options:
        assert "4 of 4 images cannot be decoded" in row(lines(capsys, folder, code=1), "refused")
    printed = lines(capsys, folder, *options)
    assert row(printed, "readable") == f"{images} of {images}"
    assert row(printed, "channels") == f"{images} of {channels}"
    assert pretrained(folder, tmp_path / "run", [row(printed, "settings")]).number == channels
    assert main(["stats", str(folder), "--workers", "0", *options]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == row(printed, "settings")


def test_limits_columns_and_several_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path / "a", 6)
    make_folder(tmp_path / "b", 3, broken=(0,))
    printed = lines(capsys, tmp_path / "a", tmp_path / "b", code=1)
    assert row(printed, "images") == "9 images, 3 classes, classes of 2 paths brought together by name"
    assert row(printed, "refused").startswith("1 of 9 images cannot be decoded (11.11%); at most 10% may be")
    printed = lines(capsys, tmp_path / "a", tmp_path / "b", "--max_bad_fraction", 0.2)
    assert "--data.max_bad_fraction=0.2" in row(printed, "settings")
    assert "20 x 24 pixels; expected at most 100" in "".join(lines(capsys, tmp_path / "a", "--max_pixels", 100, code=1))
    table = write_parquet(tmp_path / "x.parquet", [png(200), png(100)], [0, 1])
    printed = lines(capsys, table, "--image_column", "image", "--label_column", "label")
    assert row(printed, "images") == "2 images, 2 classes"
    assert row(printed, "settings").endswith(" --data.image_column=image --data.label_column=label")


def test_folders_of_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_folder(tmp_path / "train", 6)
    make_folder(tmp_path / "val", 3)
    printed = lines(capsys, tmp_path, "--labels")
    assert row(printed, "images").startswith("6 images, 3 classes, split train, images below train/, left out 3 images")
    assert row(printed, "balance").startswith("smallest '0' with 2")
    assert rows(printed, "warning") == []


def test_mistakes(fails: Callable[..., str], tmp_path: Path) -> None:
    assert "no such file" in fails("check", tmp_path / "nowhere")
    (tmp_path / "1.png").symlink_to("nowhere.png")
    assert "no images in this folder" in (line := fails("check", tmp_path))
    assert "1 links that lead nowhere" in line
    assert "--workers: expected a whole number from 0, or auto, got x" in fails("check", tmp_path, "--workers", "x")
    for verb in ("check", "stats"):
        assert "data.pages" in fails(verb, tmp_path, "--pages", "some")
        assert "data.max_pixels: expected a whole number from 1" in fails(verb, tmp_path, "--max_pixels", "0")
    with pytest.raises(UserError, match="did you mean 'pages'"):
        hardpatch.stats(tmp_path, page="first")
