"""Objects of masks, in COCO's layout, against objects that are known."""

import runpy
from pathlib import Path

import numpy as np
from PIL import Image

from hardpatch.detect.masks import decode_mask

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "salient_objects.py"


def test_each_large_part_of_a_mask_is_an_object(tmp_path: Path) -> None:
    mask = np.zeros((40, 50), dtype=np.uint8)
    mask[2:12, 3:23] = 255  # 200 pixels
    mask[20:40, 45:50] = 255  # 100
    mask[39, 0:10] = 255  # 10 of 2,000: less than 1 %
    Image.fromarray(mask).save(tmp_path / "a.png")
    content = runpy.run_path(str(SCRIPT))["coco"]([tmp_path / "a.png"])
    assert content["images"] == [{"id": 1, "file_name": "a.jpg", "height": 40, "width": 50}]
    first, second = content["annotations"]
    assert (first["bbox"], first["area"]) == ([3, 2, 20, 10], 200)
    assert (second["bbox"], second["area"]) == ([45, 20, 5, 20], 100)
    assert (decode_mask(second["segmentation"]) == ((mask > 0) & (np.arange(50) >= 45))).all()
