"""COCO files with anything in any place, as a program of its own: pycocotools ends the process it crashes in."""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from hardpatch.detect.annotations import AnnotationSet
from hardpatch.detect.coco import read_coco
from hardpatch.detect.extents import place
from hardpatch.detect.masks import object_mask
from tests.fuzz import EXAMPLES, fuzz_settings, outcome

NUMBERS = (0, 1, 2, 3.5, -1, 1e9, -1e9, 2**31, 2**63, 10**30, 1e308, -1e308, float("inf"), float("nan"), True, "2", "x")
numbers = st.one_of(st.floats(-2, 8), st.integers(0, 8), st.sampled_from(NUMBERS))
anything = st.recursive(
    st.one_of(st.none(), numbers, st.text(max_size=5)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=5,
)
polygons = st.lists(st.lists(numbers, min_size=4, max_size=9), min_size=1, max_size=2)
sizes = st.one_of(st.just([4, 6]), st.lists(numbers, max_size=3))
counts = st.one_of(
    st.sampled_from(
        ([9, 2, 2, 2, 9], "92207", "922", "92207o", "o" * 40, [9, 2], [0, 24], [-1, 25], [9, 2, 2, 2, 2**32 + 9])
    ),
    st.lists(numbers, max_size=5),
    st.text(st.characters(min_codepoint=40, max_codepoint=127), max_size=16),
)
masks = st.one_of(polygons, st.fixed_dictionaries({"counts": counts, "size": sizes}), anything)


def wrong(usual: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return usual values, and now and then any other."""
    return st.integers(0, 7).flatmap(lambda k: usual if k else anything)


images = st.fixed_dictionaries(
    {"id": wrong(st.integers(1, 3)), "file_name": wrong(st.sampled_from(("a.png", "b.png", "c.png")))},
    optional={"height": wrong(st.just(4)), "width": wrong(st.just(6))},
)
annotations = st.fixed_dictionaries(
    {"image_id": wrong(st.integers(1, 3)), "category_id": wrong(st.just(1)), "segmentation": masks},
    optional={
        "id": anything,
        "bbox": wrong(st.lists(numbers, min_size=4, max_size=4)),
        "area": wrong(numbers),
        "iscrowd": wrong(st.integers(0, 1)),
        "attributes": st.fixed_dictionaries({"rotation": numbers}),
    },
)
contents = st.fixed_dictionaries(
    {
        "images": st.just([{"id": 1, "file_name": "a.png", "height": 4, "width": 6}])
        | wrong(st.lists(images, max_size=3)),
        "annotations": wrong(st.lists(annotations, min_size=1, max_size=2)),
        "categories": wrong(st.just([{"id": 1, "name": "cat"}])),
    }
)


def _read(path: Path) -> AnnotationSet:
    annotated = read_coco(path)
    return place(annotated, {image.file: (4, 6) for image in annotated.images})


@fuzz_settings
@given(content=contents)
def check(content: Any) -> None:
    """Read a file, and decode all masks; nothing but a UserError may come of it."""
    path = Path(tempfile.gettempdir(), f"coco_{sys.argv[1]}.json")
    path.write_text(json.dumps(content))  # stays behind a crash
    annotated = outcome(lambda: _read(path), path)
    if annotated is None:
        return
    for image in annotated.images:
        for obj in image.objects:
            if obj.segmentation is not None and image.height * image.width < 1000:
                mask = object_mask(obj, image.height, image.width)
                assert mask.shape == (image.height, image.width)
                assert mask.max() <= 1
    path.unlink()


if __name__ == "__main__":
    started = time.monotonic()
    check()
    print(f"{EXAMPLES} files, {60 * EXAMPLES / (time.monotonic() - started):.0f} a minute")
