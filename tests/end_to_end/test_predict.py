"""hardpatch predict: what fine-tuned runs predict is what their own evaluation measured, in files that others read."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO  # type: ignore[import-untyped]
from pycocotools.cocoeval import COCOeval  # type: ignore[import-untyped]

import hardpatch
from hardpatch.cli import main
from hardpatch.segment.data import IGNORED, open_segmentation
from hardpatch.segment.labels import find_labels
from hardpatch.segment.measure import Confusion, measures

Fails = Callable[..., str]
MACHINE = ("--workers", "0", "--device", "cpu")


def predict(run: Path, images: Path, out: Path, *options: object) -> int:
    return main(["predict", str(run), str(images), "--out", str(out), *MACHINE, *map(str, options)])


def result_of(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "result.json").read_text())
    return content


def test_a_table_of_classes_has_the_accuracy_of_the_run(
    finetuned: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, copy, result = tmp_path / "new" / "classes.parquet", tmp_path / "r", result_of(finetuned / "classifier")
    assert predict(finetuned / "classifier", images, out, "--batch_size", 7, "--pictures", 3, "--json", copy) == 0
    printed = capsys.readouterr().out
    assert f"{out}: classifier, 30 images, left out: 0" in printed
    assert f"top-1 {result['top1']:.2%}, top-5 100.00% of 30 images by their labels" in printed
    rows = pq.read_table(out).to_pylist()
    assert sum(row["prediction"] == row["label"] for row in rows) / len(rows) == result["top1"]
    assert [row["path"] for row in rows] == sorted(map(str, images.rglob("*.jpg")))
    for row in rows:
        assert (row["classes"][0], row["probabilities"][0]) == (row["prediction"], row["probability"])
        assert sum(row["probabilities"]) == pytest.approx(1, abs=1e-6)
        assert row["probabilities"] == sorted(row["probabilities"], reverse=True)
    summary = json.loads(copy.read_text())
    assert (summary["verb"], summary["kind"], summary["top1"]) == ("predict", "classifier", result["top1"])
    pictures = sorted(path.name for path in out.with_name("classes_pictures").iterdir())
    assert [name[:5] for name in pictures] == ["00000", "00014", "00029"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["classes.parquet", "classes_pictures"]
    table = tmp_path / "classes.csv"
    assert predict(finetuned / "classifier", images, table, "--top", 1) == 0
    with table.open(newline="") as file:
        cells = list(csv.DictReader(file))
    assert list(cells[0]) == ["path", "label", "prediction", "probability"]
    assert [cell["prediction"] for cell in cells] == [row["prediction"] for row in rows]


def test_label_maps_have_the_measures_of_the_run(finetuned: Path, tmp_path: Path) -> None:
    out, data, result = tmp_path / "maps", finetuned / "pairs", result_of(finetuned / "segmenter")
    assert predict(finetuned / "segmenter", data / "images" / "val", out, "--pictures", 1) == 0
    labels = find_labels(data)
    pairs = open_segmentation(data, "val", labels)
    confusion = Confusion(3, torch.device("cpu"))
    for index, path in enumerate(pairs.images):
        with Image.open(out / "labels" / path.name) as image:
            assert image.mode == "P"
            assert image.getpalette()[:9] == [128, 0, 0, 0, 128, 0, 128, 128, 0]  # type: ignore[index]
            predicted = np.asarray(image)
        assert predicted.max() < 3 < IGNORED
        confusion.add(torch.from_numpy(pairs.label_map(index).copy()), torch.from_numpy(predicted.copy()))
    found = measures(confusion.matrix())
    assert (found.miou, found.pixel_accuracy) == (result["miou"], result["pixel_accuracy"])
    written = find_labels(out, str(out / "classes.txt"))
    assert (written.names, written.values) == (("sky", "road", "car"), (0, 1, 2))
    with (out / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "path": str(pairs.images[0]),
        "label_map": f"labels/{pairs.images[0].name}",
        "height": "24",
        "width": "32",
    }
    assert len(list((tmp_path / "maps_pictures").iterdir())) == 1


def test_objects_have_the_precision_of_the_run(finetuned: Path, tmp_path: Path) -> None:
    out, data = tmp_path / "objects.json", finetuned / "coco"
    assert predict(finetuned / "detector", data / "val", out, "--pictures", 2, "--batch_size", 2) == 0
    predicted = COCO(str(out))
    assert [(c["id"], c["name"]) for c in predicted.dataset["categories"]] == [(3, "box"), (8, "chest")]
    truth = COCO(str(data / "val.json"))
    ids = {image["file_name"]: image["id"] for image in truth.dataset["images"]}
    of_image = {image["id"]: ids[image["file_name"]] for image in predicted.dataset["images"]}
    assert [(image["height"], image["width"]) for image in predicted.dataset["images"]] == [(24, 32)] * 3
    for kind, name, other in (("bbox", "box", "segmentation"), ("segm", "mask", "bbox")):
        results = [
            {key: value for key, value in entry.items() if key not in (other, "id")}
            | {"image_id": of_image[entry["image_id"]]}
            for entry in predicted.dataset["annotations"]
        ]
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert evaluation.stats[0] == pytest.approx(result_of(finetuned / "detector")[name]["AP"], abs=1e-12)
    own = json.loads((finetuned / "detector" / "detections.json").read_text())
    kept = ("category_id", "bbox", "score", "segmentation")
    found = [
        {"image_id": of_image[entry["image_id"]], **{key: entry[key] for key in kept}}
        for entry in predicted.dataset["annotations"]
    ]
    assert len(own) > 100  # the average precision of such a short training says little
    assert found == own


def test_a_network_predicts_arrays_and_files_alike(finetuned: Path, images: Path) -> None:
    files = sorted(images.rglob("*.jpg"))[::9]
    arrays = [np.asarray(Image.open(file)) for file in files]
    classifier = hardpatch.load_finetuned(finetuned / "classifier")
    assert (classifier.kind, classifier.classes) == ("classifier", ("class_0", "class_1"))
    own = hardpatch.load_classifier(finetuned / "classifier").model.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in classifier.model.state_dict().items())
    by_file = classifier.predict(files)
    assert [prediction.probabilities.argmax().item() for prediction in by_file] == [
        classifier.predict(str(file))[0].top(1)[0][0] for file in files
    ]
    for one, other in zip(by_file, classifier.predict(arrays), strict=True):
        torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=1e-3)  # two JPEG decoders
    gray = np.arange(40 * 60, dtype=np.uint16).reshape(40, 60)
    (of_gray,), (of_color,) = classifier.predict([gray]), classifier.predict([np.repeat(gray[..., None], 3, axis=2)])
    assert torch.equal(of_gray.scores, of_color.scores)
    maps = hardpatch.load_finetuned(finetuned / "segmenter" / "segmenter.safetensors").predict([arrays[0][:, :, 0]])
    assert (maps[0].shape, maps[0].dtype) == (arrays[0].shape[:2], np.uint8)
    (found,) = hardpatch.load_finetuned(finetuned / "detector").predict([arrays[0]])
    assert found.size == arrays[0].shape[:2]
    with pytest.raises(hardpatch.errors.UserError, match=r"images\[0\]: expected pixels"):
        classifier.predict([np.zeros(3)])


@pytest.mark.parametrize("kind", ["classifier", "segmenter", "detector"])
def test_odd_and_broken_files(kind: str, finetuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Names come out right; images may be of any size, depth and orientation, and broken ones are named."""
    data = tmp_path / "odd"
    (data / "sub").mkdir(parents=True)
    rng = np.random.default_rng(0)
    shapes = {"quo'\"te.png": (40, 9), "line\nbreak.png": (3, 50), "sub/Ünïcode, 文.png": (64, 64)}
    for name, shape in shapes.items():
        Image.fromarray(rng.integers(0, 255, (*shape, 3), dtype=np.uint8)).save(data / name)
    Image.fromarray(rng.integers(0, 65535, (20, 30), dtype=np.uint16)).save(data / "deep.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(rng.integers(0, 255, (20, 50), dtype=np.uint8)).save(data / "turned.jpg", exif=exif)
    (data / "broken.png").write_bytes(b"no image")
    out = tmp_path / {"classifier": "out.csv", "segmenter": "out", "detector": "out.json"}[kind]
    assert predict(finetuned / kind, data, out, "--pictures", 9) == 0
    captured = capsys.readouterr()
    assert "5 images" in captured.out
    assert "left out: 1" in captured.out
    assert "cannot decode" in captured.err
    sizes = {"deep.png": (20, 30), "turned.jpg": (50, 20), **shapes}
    if kind == "classifier":
        with out.open(newline="") as file:
            paths = {row["path"] for row in csv.DictReader(file)}
        assert paths == {str(data / name).replace("\n", "\\n") for name in sizes}
    elif kind == "segmenter":
        for name, size in sizes.items():
            with Image.open((out / "labels" / name).with_suffix(".png")) as image:
                assert (image.height, image.width) == size, name
    else:
        entries = json.loads(out.read_text())["images"]
        assert {entry["file_name"]: (entry["height"], entry["width"]) for entry in entries} == sizes
    assert len(os.listdir(tmp_path / "out_pictures")) == 5
    limit = predict(finetuned / kind, data, tmp_path / f"again{out.suffix}", "--max_bad_fraction", 0.1)
    assert limit == 2
    assert not [path for path in tmp_path.iterdir() if "again" in path.name]


def test_mistakes(finetuned: Path, images: Path, tmp_path: Path, fails: Fails) -> None:
    there = tmp_path / "there.json"
    there.write_text("")
    for run, out, message in (
        ("detector", there, "--out: expected a name that does not exist yet"),
        ("detector", tmp_path / "x.parquet", "--out: expected a .json file for the objects that a detector finds"),
        ("classifier", tmp_path / "x.json", "--out: expected a .parquet or .csv file"),
        ("segmenter", tmp_path / "x.json", "--out: expected a new folder for the label maps"),
        ("run", tmp_path / "x.csv", "expected a run of finetune, segment or detect"),
        ("nowhere", tmp_path / "x.csv", "does not exist"),
    ):
        assert message in fails("predict", finetuned / run, images, "--out", out)
    assert "--top: expected a whole number from 1" in fails(
        "predict", finetuned / "classifier", images, "--out", tmp_path / "x.csv", "--top", 0
    )
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "a.png").write_bytes(b"")
    for kind, name in (("classifier", "x.csv"), ("segmenter", "x"), ("detector", "x.json")):
        assert predict(finetuned / kind, broken, tmp_path / name) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "there.json"]
