"""hardpatch detect on boxes alone: COCO without polygons, Pascal VOC, YOLO; resuming, loading, and refusals."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import hardpatch
from hardpatch.cli import main
from hardpatch.detect.measure import average_precision
from hardpatch.train.metrics import read_metrics
from tests.end_to_end.test_detect import TINY
from tests.end_to_end.test_detect import data as polygons  # noqa: F401 - a fixture


@pytest.fixture
def data(polygons: Path, tmp_path: Path) -> Path:  # noqa: F811
    """Copy the images and their annotations, without the polygons."""
    folder = tmp_path / "data"
    shutil.copytree(polygons, folder)
    for part in ("train", "val"):
        change(folder / f"{part}.json", segmentation=[])
    return folder


def change(file: Path, number: int | None = None, **fields: object) -> None:
    """Change fields of the annotations of a file, of the first ``number``."""
    content = json.loads(file.read_text())
    for entry in content["annotations"][:number]:
        entry |= fields
    file.write_text(json.dumps(content))


def command(
    run: Path, data: Path, out: Path, *options: object, train: str = "train.json", val: str = "val.json"
) -> list[str]:
    annotations = ("--annotations", str(data / train), "--val_annotations", str(data / val))
    paths = ("--train", str(data / "train"), "--val", str(data / "val"), *annotations, "--out", str(out))
    return ["detect", str(run), *paths, *TINY, *map(str, options)]


def test_a_detector_of_boxes(
    run: Path, data: Path, tmp_path: Path, fails: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "detector"
    assert main(command(run, data, out, "--steps", 3, "--checkpoint_steps", 1)) == 0
    printed = capsys.readouterr()
    assert "--train: COCO JSON: 5 images (1 without objects), 2 classes, 4 boxes: 4 objects, 0 of them" in printed.err
    assert "--masks auto: none of the 4 objects of --train has a usable polygon: a box head only" in printed.err
    assert "box: AP " in printed.out
    assert "mask" not in printed.out
    result = json.loads((out / "result.json").read_text())
    assert (result["masks"], result["used"]["train"]["boxes"], result["formats"]["val"]) == (False, 4, "COCO JSON")
    assert "mask" not in result
    assert all("segmentation" not in entry for entry in json.loads((out / "detections.json").read_text()))
    rows = read_metrics(out / "metrics.jsonl")
    assert all("loss_mask" not in row and "mask_ap" not in row for row in rows)
    assert "box_ap" in rows[-1]
    detector = hardpatch.load_detector(out)
    with torch.no_grad():
        assert set(detector.model([torch.zeros(3, 24, 32).byte()])[0]) == {"boxes", "labels", "scores"}
    # resumed after the first step, it ends with the same bits
    again = tmp_path / "again"
    shutil.copytree(out, again)
    for later in sorted((again / "checkpoints").iterdir())[1:]:
        shutil.rmtree(later)
    assert main(["detect", "--resume", "--out", str(again)]) == 0
    assert json.loads((again / "detections.json").read_text()) == json.loads((out / "detections.json").read_text())
    weights, same = (hardpatch.load_detector(folder).model.state_dict() for folder in (out, again))
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    change(data / "train.json", segmentation=[[4, 6, 20, 6, 20, 18]])
    assert "--resume: " in (line := fails("detect", "--resume", "--out", again))
    assert "was begun without a mask head, and with its annotations of now it would be with a mask head" in line


@pytest.mark.parametrize(
    ("choice", "kinds", "line"),
    [
        ("auto", {"box", "mask"}, "1 of 4 objects of --train have no usable polygon: they train the boxes"),
        ("boxes", {"box", "mask"}, "1 of 4 objects of --train and 2 of 2 of --val, which have no usable polygon"),
        ("none", {"box"}, "--masks none: no mask head; box AP only"),
    ],
)
def test_partly_without_polygons(
    run: Path,
    polygons: Path,  # noqa: F811
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    choice: str,
    kinds: set[str],
    line: str,
) -> None:
    shutil.copy(polygons / "train.json", data / "train.json")
    change(data / "train.json", 1, segmentation=None)
    if choice == "auto":
        shutil.copy(polygons / "val.json", data / "val.json")
    out = tmp_path / "out"
    assert main(command(run, data, out, "--steps", 2, "--masks", choice)) == 0
    assert line in capsys.readouterr().err
    result = json.loads((out / "result.json").read_text())
    assert {"box", "mask"} & result.keys() == kinds


def write_voc(data: Path) -> None:
    for part in ("train", "val"):
        content = json.loads((data / f"{part}.json").read_text())
        names = {entry["id"]: entry["name"] for entry in content["categories"]}
        (data / f"{part}_xml").mkdir()
        for image in content["images"]:
            objects = ""
            for entry in content["annotations"]:
                left, top, width, height = entry["bbox"]
                if entry["image_id"] == image["id"]:
                    corners = f"<xmin>{left + 1}</xmin><ymin>{top + 1}</ymin><xmax>{left + width}</xmax>"
                    box = f"<bndbox>{corners}<ymax>{top + height}</ymax></bndbox>"
                    objects += f"<object><name>{names[entry['category_id']]}</name>{box}</object>"
            text = f"<annotation><filename>{image['file_name']}</filename>{objects}</annotation>"
            (data / f"{part}_xml" / f"{Path(image['file_name']).stem}.xml").write_text(text)


def write_yolo(data: Path) -> None:
    for part in ("train", "val"):
        content = json.loads((data / f"{part}.json").read_text())
        numbers = {entry["id"]: number for number, entry in enumerate(content["categories"])}
        (data / f"{part}_txt").mkdir()
        for image in content["images"]:
            lines = []
            for entry in content["annotations"]:
                left, top, width, height = entry["bbox"]
                if entry["image_id"] == image["id"]:
                    center = ((left + width / 2) / 32, (top + height / 2) / 24, width / 32, height / 24)
                    lines.append(" ".join(map(str, (numbers[entry["category_id"]], *center))))
            (data / f"{part}_txt" / f"{Path(image['file_name']).stem}.txt").write_text("\n".join(lines))
    (data / "classes.txt").write_text("box\nchest\n")


def test_the_same_boxes_in_three_formats(
    run: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_voc(data)
    write_yolo(data)
    losses, detections = [], []
    for kind, name in (("json", "COCO JSON"), ("xml", "Pascal VOC XML"), ("txt", "YOLO text")):
        out = tmp_path / kind
        paths = {part: f"{part}.json" if kind == "json" else f"{part}_{kind}" for part in ("train", "val")}
        assert main(command(run, data, out, "--steps", 2, **paths)) == 0
        assert f"--val: {name}: 3 images (1 without objects), 2 classes, 2 boxes: 2 objects" in capsys.readouterr().err
        losses.append([row["loss"] for row in read_metrics(out / "metrics.jsonl") if "loss" in row])
        result = json.loads((out / "result.json").read_text())
        assert result["formats"] == {"train": name, "val": name}
        results = json.loads((out / "detections.json").read_text())
        detections.append([(entry["bbox"], entry["score"]) for entry in results])
        assert (out / "val_annotations.json").is_file() == (kind != "json")
        if kind != "json":
            truth = json.loads((out / "val_annotations.json").read_text())
            assert average_precision(truth, results, ("box",))["box"] == result["box"]
    assert losses[0] == losses[1] == pytest.approx(losses[2])
    assert detections[0] == detections[1]
    assert len(detections[2]) == len(detections[0])


def test_broken_images_are_found_before_the_first_step(
    run: Path, data: Path, tmp_path: Path, fails: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    out, broken = tmp_path / "out", data / "val" / "1.png"
    broken.write_bytes(broken.read_bytes()[:200])
    line = fails(*command(run, data, out, "--steps", 1))
    assert "--val: max_bad_fraction: 1 of 3 images (33.33%) cannot be used" in line
    assert str(broken) in line
    assert not out.exists()
    assert main(command(run, data, out, "--steps", 1, "--max_bad_fraction", 0.4)) == 0
    assert f"cannot use {broken}" in capsys.readouterr().err
    assert f"cannot use {broken}" in (out / "log.txt").read_text()
    result = json.loads((out / "result.json").read_text())
    assert result["images"] == {"train": 5, "val": 2}
    assert result["left_out"]["val, undecodable"] == 1
    assert result["left_out"]["val, objects of images that cannot be used"] == 1


def test_refusals_before_anything_is_written(run: Path, data: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    out = tmp_path / "out"
    line = fails(*command(run, data, out, "--steps", 1, "--masks", "polygons"))
    assert "--masks polygons: none of the 4 objects of " in line
    change(data / "val.json", 1, bbox=[1, None, 3, 4])
    assert "val.json: annotation 0: bbox: expected [left, top, width, height], got [1, null, 3, 4]" in fails(
        *command(run, data, out, "--steps", 1)
    )
    change(data / "val.json", bbox=[40, 3, 8, 8])
    assert "every object would be left out: 2 outside their image" in fails(*command(run, data, out, "--steps", 1))
    Image.fromarray(np.zeros((32, 24, 3), dtype=np.uint8)).save(data / "train" / "0.png")
    change(data / "val.json", bbox=[4, 3, 8, 8])
    line = fails(*command(run, data, out, "--steps", 1))
    assert "the annotations say 24x32 pixels, the image has 32x24 (height and width exchanged)" in line
    assert not out.exists()
