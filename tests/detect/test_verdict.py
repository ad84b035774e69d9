"""Verdicts on detectors, and the box that is the same in every image."""

from dataclasses import replace

import pytest

from hardpatch.detect.annotations import AnnotatedImage, AnnotatedObject, AnnotationSet
from hardpatch.detect.measure import Precision, average_precision
from hardpatch.detect.verdict import typical_box, verdict
from tests.detect.small import Box, detection, scene

LENGTH = "256 steps of 2 images; --preset small takes 2,000 or more"
PETS = {4: "cat", 7: "dog"}


def pets(*images: list[tuple[int, Box]]) -> AnnotationSet:
    """Images of 300 x 300 pixels with boxes by category."""
    return AnnotationSet(
        "pets",
        PETS,
        [
            AnnotatedImage(k, f"{k}.png", 300, 300, [AnnotatedObject(c, box, None, 900.0, False) for c, box in objects])
            for k, objects in enumerate(images, 1)
        ],
    )


def test_the_same_box_in_every_image() -> None:
    train = pets([(4, (0, 0, 30, 30)), (4, (100, 100, 60, 60)), (4, (102, 98, 60, 60))], [(7, (5, 5, 9, 9))])
    val = pets([(4, (100, 98, 60, 60))], [(7, (200, 200, 40, 40))])
    # The median box of the cats meets the only cat at every threshold; one of two detections is right, dogs are missed.
    assert typical_box(train, val) == pytest.approx(0.5, abs=0.01)
    half = replace(val.images[0], id=9, width=150, height=150, objects=[])
    assert typical_box(train, replace(val, images=[half])) is None
    moved = pets([(4, (200, 0, 60, 60))], [])
    assert typical_box(train, moved) == 0.0


def test_boxes_follow_the_size_of_the_image() -> None:
    train = pets([(4, (60, 90, 120, 30))])
    small = replace(
        train.images[0], width=150, height=150, objects=[AnnotatedObject(4, (30, 45, 60, 15), None, 900, False)]
    )
    assert typical_box(train, replace(train, images=[small])) == pytest.approx(1.0)


def ap(value: float | None) -> Precision:
    return {"box": {"AP": value}}


def test_verdicts() -> None:
    cat, dog = detection((100, 98, 60, 60), 0.9), detection((0, 0, 9, 9), 0.9) | {"category_id": 7}
    val = pets([(4, (100, 98, 60, 60))], [(7, (200, 200, 40, 40))])
    for precision, found, typical, learned, said in [
        (0.0, [], 0.0, "no", "no detection above 0.05 in 2 images"),
        (0.001, [cat, dog], 0.0, "no", f"AP 0.10%: the detector learned nothing yet ({LENGTH})"),
        (0.03, [cat, dog], 0.04, "no", "AP 3.00%: the detector learned nothing yet"),  # worse than the same box
        (0.03, [cat, dog], 0.01, "barely", "the same box of the most frequent class in every image has AP 1.00%"),
        (0.5, [cat], 0.01, "yes", "detects 1 of 2 classes; without dog"),
        (0.5, [cat, dog], 0.01, "yes", "the same box of the most frequent class in every image has AP 1.00%"),
    ]:
        result = verdict(ap(precision), found, val, typical, LENGTH)
        assert result.learned == learned
        assert any(reason.startswith(said) for reason in result.reasons), result.reasons
    empty = verdict(ap(None), [], pets([]), None, LENGTH)
    assert (empty.learned, empty.reasons) == ("no", ("--val has no objects: average precision has no value",))


def test_perfect_detections_have_learned() -> None:
    val = scene((10, 10, 60, 60))
    found = [detection((10, 10, 60, 60), 0.9)]
    precision = average_precision(val.ground_truth(), found, ("box",))
    assert verdict(precision, found, val, typical_box(scene((200, 200, 20, 20)), val), LENGTH).learned == "yes"
