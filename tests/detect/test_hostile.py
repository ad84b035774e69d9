"""Annotations that would end the process in pycocotools, take all memory, or be measured wrong without a word."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hardpatch.data.reading import UndecodableImage
from hardpatch.detect.annotations import AnnotatedImage
from hardpatch.detect.extents import OVERLONG
from hardpatch.detect.images import read_image
from hardpatch.detect.masks import LONGEST, compressed, mask_tools, object_mask, overlong, run_lengths
from hardpatch.detect.measure import average_precision
from hardpatch.detect.voc import read_voc
from hardpatch.detect.yolo import read_yolo
from hardpatch.errors import UserError
from tests.detect.small import coco_content, detection, read_content, scene


@pytest.mark.parametrize(
    "polygon",
    [
        [1e308, 1, 4, 1, -1e308, 3],
        [1e9, 1, 4, 1, 4, 3, 2, -1e9],
        [10**30, 1, 10**30 + 4, 1, 4, 3],
        [0.5, 1, 10**300, 1, 4, -(10**300)],
        [0, 0, 6e5, 4, 0, 4],
    ],
)
def test_an_object_of_an_endless_polygon_is_left_out(tmp_path: Path, polygon: list[float]) -> None:
    content = coco_content()
    content["annotations"][0]["segmentation"] = [polygon]
    annotations = read_content(tmp_path, content)
    assert annotations.left_out == {OVERLONG: 1}
    assert [len(image.objects) for image in annotations.images] == [2, 0, 1]


def test_a_polygon_is_as_long_as_its_edges() -> None:
    zigzag = [[0.0, 0.0, 1000.0, 0.0] * (LONGEST // 2000)]  # back and forth: one million pixels
    assert not overlong(zigzag)
    assert overlong([[*zigzag[0], 0.0, 0.0, 500.0, 500.0]])


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[float("inf"), 1, 4, 1, 4, 3]], r"annotation 0: segmentation: expected numbers .*, got Infinity"),
        ([[float("nan"), 1, 4, 1, 4, 3]], r"annotation 0: segmentation: expected numbers .*, got NaN"),
        ([[10**400, 1, -(10**400), 1, 4, 3]], r"annotation 0: segmentation: expected numbers .*, got 1000"),
        ({"counts": "922", "size": [4, 6]}, r"segmentation.counts: expected run lengths of 4 x 6 = 24 pixels, got"),
        ({"counts": "o" * 100_000, "size": [4, 6]}, r"segmentation.counts: expected run lengths of 4 x 6"),
        ({"counts": [9, 2, 2, 2, 2**32 + 9], "size": [4, 6]}, r"segmentation.counts: expected run lengths of 4 x 6"),
        ({"counts": [0, 24], "size": [10**9, 1]}, r"its mask has \[1000000000, 1\] pixels, image 7 has \[4, 6\]"),
    ],
)
def test_a_mask_that_is_none_is_named(tmp_path: Path, segmentation: Any, message: str) -> None:
    content = coco_content()
    content["annotations"][0]["segmentation"] = segmentation
    with pytest.raises(UserError, match=message):
        read_content(tmp_path, content)


def test_a_mask_of_more_pixels_than_pycocotools_counts(tmp_path: Path) -> None:
    content = coco_content()
    content["images"][0] |= {"height": 10**9, "width": 10**9}
    content["annotations"] = [content["annotations"][0]]
    content["annotations"][0]["segmentation"] = {"counts": [0, 10**18], "size": [10**9, 10**9]}
    with pytest.raises(UserError, match="expected a mask of at most 2,147,483,647 pixels, got"):
        read_content(tmp_path, content)


def test_run_lengths_reach_pycocotools_as_they_were_checked(tmp_path: Path) -> None:
    # 64 bits of zeros behind the first number: nothing in Python, and a run over the end of a number in C
    content = coco_content()
    content["annotations"][3]["segmentation"] = {"counts": "Y" + "P" * 10 + "02207", "size": [4, 6]}
    obj = read_content(tmp_path, content).images[2].objects[0]
    assert obj.segmentation == {"counts": "92207", "size": [4, 6]}
    assert object_mask(obj, 4, 6).sum() == 4


@given(lengths=st.lists(st.integers(0, 2**20), min_size=1, max_size=12))
def test_the_text_of_run_lengths_is_that_of_pycocotools(lengths: list[int]) -> None:
    text = compressed(lengths)
    assert text == mask_tools().frPyObjects({"counts": lengths, "size": [sum(lengths), 1]}, 1, 1)["counts"].decode()
    assert run_lengths(text) == lengths


def test_a_box_of_a_negative_side_without_an_area_is_left_out(tmp_path: Path) -> None:
    content = coco_content()
    content["annotations"][0] |= {"bbox": [1, 1, 2, -2], "area": None}
    assert read_content(tmp_path, content).left_out == {"without width or height": 1}


def test_a_box_of_endless_sides_has_the_area_of_its_image(tmp_path: Path) -> None:
    content = coco_content()
    content["annotations"][0] |= {"bbox": [0, 0, 1e308, 1e308], "area": None, "segmentation": None}
    obj = read_content(tmp_path, content).images[0].objects[0]
    assert (obj.box, obj.area) == ((0, 0, 6, 4), 24)


def test_lists_in_lists_without_end(tmp_path: Path) -> None:
    for depth in (100_000, 900, 960, 980):
        text = '{"images": [], "annotations": [' + "[" * depth + "]" * depth + '], "categories": []}'
        with pytest.raises(UserError):
            read_content(tmp_path, text)
        nested = '{"id": 1, "image_id": 7, "category_id": 4, "bbox": ' + "[" * depth + "]" * depth + "}"
        whole = str(coco_content()).replace("'", '"')
        with pytest.raises(UserError):
            read_content(tmp_path, whole[: whole.rindex("]}")] + f", {nested}, {nested}]}}")


@pytest.mark.parametrize("ids", [("a", 7), (2**70, -1), (2**63 + 1, -3)])
def test_precision_does_not_depend_on_the_kind_of_ids(ids: tuple[Any, Any]) -> None:
    truth = scene((10, 10, 80, 90)).ground_truth()
    truth["images"].append({**truth["images"][0], "id": 2})
    truth["annotations"].append({**truth["annotations"][0], "id": 2, "image_id": 2})
    results = [detection((10, 10, 80, 90), 0.9, number) for number in (1, 2)]
    for entries, key in ((truth["images"], "id"), (truth["annotations"], "image_id"), (results, "image_id")):
        for entry in entries:
            entry[key] = ids[entry[key] - 1]
    for entries, key in ((truth["categories"], "id"), (truth["annotations"], "category_id"), (results, "category_id")):
        for entry in entries:
            entry[key] = 2**63 + 5
    precision = average_precision(truth, results)
    assert precision["box"]["AP"] == pytest.approx(1)
    assert precision["mask"]["AP"] == pytest.approx(1)


def test_names_of_images_that_no_file_can_have(tmp_path: Path) -> None:
    for name in ("a\0.png", "\ud800.png"):
        with pytest.raises(UndecodableImage):
            read_image(AnnotatedImage(1, name, 4, 6), tmp_path)


def test_entities_of_xml(tmp_path: Path) -> None:
    laughs = '<!DOCTYPE a [<!ENTITY a "ha">' + "".join(
        f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip("abcdefghi", "bcdefghij", strict=True)
    )
    (tmp_path / "1.xml").write_text(f"{laughs}]><annotation><object><name>&j;</name></object></annotation>")
    with pytest.raises(UserError, match=r"1\.xml: expected Pascal VOC annotations, got XML with entities of its own"):
        read_voc(tmp_path, tmp_path)


def test_xml_that_is_none(tmp_path: Path) -> None:
    nested = b"<annotation>" + b"<a>" * 200_000 + b"</a>" * 200_000 + b"</annotation>"
    for content in (
        b"",
        b"\xff\xfe\0",
        b'<?xml version="1.0" encoding="x-none"?><annotation/>',
        b"<annotation>",
        nested[:99],
    ):
        (tmp_path / "1.xml").write_bytes(content)
        with pytest.raises(UserError, match=r"1\.xml: "):
            read_voc(tmp_path, tmp_path)
    (tmp_path / "1.xml").write_bytes(nested)
    assert not read_voc(tmp_path, tmp_path).objects


def test_aliases_and_other_values_in_yaml(tmp_path: Path) -> None:
    bomb = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    bomb += [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]" for k in range(1, 12)]
    bomb += ["names: [cat, *a11]"]
    for text, message in (
        ("\n".join(bomb), r"expected at most 100,000 values, got more"),
        ("names: [cat, [dog, cow]]", "names: expected texts, got a list"),
        ("names: 2020-99-99", r"data\.yaml"),
        ("names: " + "[" * 5000, r"data\.yaml"),
    ):
        (tmp_path / "data.yaml").write_text(text)
        with pytest.raises(UserError, match=message):
            read_yolo(tmp_path / "data.yaml", tmp_path)


def test_masks_are_whole(tmp_path: Path) -> None:
    content = coco_content()
    content["annotations"][0]["segmentation"] = [[-1e5, -1e5, 1e5, -1e5, 1e5, 1e5, -1e5, 1e5]]
    assert np.all(object_mask(read_content(tmp_path, content).images[0].objects[0], 4, 6) == 1)
