"""hardpatch check with annotations of objects and with label maps."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hardpatch.cli import main
from tests.detect.small import coco_content
from tests.segment.small import blocks, write_pair


def lines(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> list[str]:
    capsys.readouterr()
    assert main(["check", *map(str, arguments), "--workers", "0"]) == code
    return [line for line in capsys.readouterr().out.splitlines() if "--annotations: " in line or "--masks: " in line]


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """Write three images of 4 x 6 pixels and annotations of them."""
    for number in (3, 5, 7):
        pixels = np.random.default_rng(number).integers(0, 256, (4, 6, 3), dtype=np.uint8)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    (tmp_path / "a.json").write_text(json.dumps(coco_content()))
    return tmp_path


def test_annotations_that_fit(coco: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = lines(capsys, coco / "images", "--annotations", coco / "a.json")
    assert printed[0].startswith("note          --annotations: COCO JSON: 3 images (1 without objects), 2 classes")
    ends = "smallest class 'dog' with 1, largest 'cat' with 3, ratio 3"
    assert printed[-1] == f"note          --annotations: objects: {ends}"


def test_annotations_that_are_refused(coco: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for reason in ("the annotations say 4x6 pixels, the image has 9x9", "No such file or directory"):
        if reason.startswith("No"):
            (coco / "images" / "7.png").unlink()
        else:
            Image.new("RGB", (9, 9)).save(coco / "images" / "7.png")
        said = lines(capsys, coco / "images", "--annotations", coco / "a.json", code=1)
        (refused,) = (line for line in said if "7.png" in line)
        assert refused.startswith("refused       --annotations: 1 of 3 images cannot be used, the first: ")
        assert reason in refused
    (coco / "a.json").write_text("{}")
    (printed,) = lines(capsys, coco / "images", "--annotations", coco / "a.json", code=1)
    assert printed.startswith("refused ")


def test_label_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, maps = tmp_path / "images", tmp_path / "maps"
    for k in range(3):
        write_pair(images, maps, f"{k}", blocks(k))
    printed = lines(capsys, images, "--masks", maps, "--classes", "3")
    assert any("3 pairs" in line for line in printed)
    (maps / "1.png").unlink()
    (printed_line,) = lines(capsys, images, "--masks", maps, "--classes", "3", code=1)
    assert printed_line.startswith("refused       --masks: 1 of 3 images have no label map: ")
    write_pair(tmp_path / "x", maps, "1", np.full((24, 32), 9))
    (printed_line,) = lines(capsys, images, "--masks", maps, "--classes", "3", code=1)
    assert printed_line.startswith("refused ")


def test_mistakes(fails: Callable[..., str], coco: Path) -> None:
    images, annotations = coco / "images", coco / "a.json"
    assert "expected one of --labels, --annotations and --masks" in fails("check", images, "--labels", "--masks", coco)
    assert "--annotations: no such file" in fails("check", images, "--annotations", coco / "none.json")
    assert "--annotations: expected a folder of images" in fails("check", "demo:train", "--annotations", annotations)
    assert "--masks: expected a folder of label maps" in fails("check", images, "--masks", coco / "none")
    assert "--masks: expected a folder beside that of the images" in fails("check", images, "--masks", images)
    assert "--classes: names the classes of --masks" in fails("check", images, "--classes", "3")
