"""Tables 5 and 7 at the smallest scale, with COCO annotations and folders of images and label maps."""

import json
from pathlib import Path
from typing import Any

import pytest

from hardpatch.cli import main
from tests.end_to_end.conftest import write_images
from tests.end_to_end.test_detect import data as coco  # noqa: F401 - a fixture
from tests.end_to_end.test_segment import data as pairs  # noqa: F401 - a fixture

MICRO = ("--scale", "micro", "--train.device", "cpu", "--steps", "2")


@pytest.fixture(scope="module")
def val(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write images to evaluate on, of the same two classes as ``images``."""
    return write_images(tmp_path_factory.mktemp("val") / "labeled", each=6)


def rows_of(out: Path, table: str) -> dict[str, Any]:
    content = json.loads((out / table / "table.json").read_text())
    return {row["name"]: row for row in content["rows"]}


def test_tables_5_and_7(images: Path, val: Path, coco: Path, pairs: Path, tmp_path: Path) -> None:  # noqa: F811
    out, tokens = tmp_path / "study", tmp_path / "tokens"
    sizes = "--steps 1 --batch_size 2 --image_size 32 --patch_size 4 --vocabulary 32 --width 16 --workers 0"
    assert main(["tokenizer", "--data", str(images), "--out", str(tokens), *sizes.split()]) == 0
    train = ("--detect_train", coco / "train", "--detect_annotations", coco / "train.json")
    evaluation = ("--detect_val", coco / "val", "--detect_val_annotations", coco / "val.json")
    segment = ("--segment_train", pairs, "--segment_val", pairs)
    common = map(
        str, ("--data", images, "--val", val, *train, *evaluation, *segment, "--tokenizer", tokens, "--out", out)
    )
    options = [*MICRO, *common]
    assert main(["study", "table5", *options, "--measures", "detect,segment"]) == 0
    table5 = rows_of(out, "table5")
    for name in ("RGB (MAE)", "RGB + predicting loss", "RGB + predicting loss + learned masks"):
        assert set(table5[name]["ours"]) == {"box_ap", "mask_ap", "miou"}
        assert all(0.0 <= value["mean"] <= 1.0 for value in table5[name]["ours"].values())
    assert table5["CLIP features"]["missing"] == "not run: it needs --clip_weights FILE"
    text = (out / "table5" / "table.md").read_text()
    assert "| AP box | AP mask | mIoU | paper: AP box | paper: AP mask | paper: mIoU |" in text
    assert "| 42.03 | 38.15 | 42.09 |" in text

    assert main(["study", "table7", *options, "--measures", "segment_160k"]) == 0
    table7 = rows_of(out, "table7")
    for name in ("BEiT", "MAE", "HPM"):
        assert set(table7[name]["ours"]) == {"miou_160k", "miou_160k_large"}
    assert table7["SemMAE"]["missing"].startswith("not run: the paper's figure, cited")
    # Twice the steps of Table 5; the run folders are those of the verbs.
    short = json.loads((out / "runs" / "hpm" / "seed_0" / "segment" / "result.json").read_text())
    long = json.loads((out / "runs" / "hpm-length_4" / "seed_0" / "segment_160k" / "result.json").read_text())
    assert long["steps"] == 2 * short["steps"]
