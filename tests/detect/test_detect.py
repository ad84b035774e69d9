import contextlib
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

from hardpatch.detect.batches import Sample, ScaleJitter, training_samples
from hardpatch.detect.data import CocoImage, CocoObject, CocoSet, decode_mask, read_coco
from hardpatch.detect.measure import average_precision, in_coco_layout
from hardpatch.detect.model import mask_rcnn
from hardpatch.detect.pictures import HEIGHT, detection_sheet
from hardpatch.detect.settings import (
    PRESETS,
    DetectionRun,
    check_run,
    from_dict,
    step_learning_rate,
    total_steps,
    with_values,
)
from hardpatch.detect.trainer import DetectionTrainer, groups
from hardpatch.errors import UserError
from hardpatch.interchange.backbone import Backbone
from hardpatch.models.block import Block
from hardpatch.models.encoder import Encoder
from hardpatch.train.settings import to_dict

Box = tuple[int, int, int, int]


def run_lengths(box: Box, size: tuple[int, int] = (300, 300)) -> dict[str, Any]:
    """Of a rectangle (left, top, width, height), down the columns."""
    mask = np.zeros(size, dtype=np.uint8)
    mask[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = 1
    flat = mask.T.ravel()
    ends = [*(np.flatnonzero(np.diff(flat)) + 1), len(flat)]
    counts = np.diff([0, *ends]).tolist()
    return {"counts": counts if flat[0] == 0 else [0, *counts], "size": list(size)}


def scene(*boxes: Box, crowd: Box | None = None) -> CocoSet:
    """One image of 300 x 300 pixels with rectangles of one category."""
    things = [CocoObject(4, box, run_lengths(box), box[2] * box[3], False) for box in boxes]
    if crowd is not None:
        things.append(CocoObject(4, crowd, run_lengths(crowd), crowd[2] * crowd[3], True))
    return CocoSet("scene", {4: "cat"}, [CocoImage(1, "1.png", 300, 300, things)], 0)


def found(box: Box, score: float) -> dict[str, Any]:
    from pycocotools import mask  # type: ignore[import-untyped]

    encoded = mask.frPyObjects(run_lengths(box), 300, 300)
    segmentation = {"counts": encoded["counts"].decode(), "size": encoded["size"]}
    return {"image_id": 1, "category_id": 4, "bbox": list(box), "score": score, "segmentation": segmentation}


def test_average_precision_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    """Two objects and three boxes: right, wrong, and one with IoU 0.78, which is right at 6 of the 10 thresholds.

    There the precision is 1 up to recall 1/2 (51 of the 101 points) and 2/3 beyond (50), else 1 and nothing.
    """
    truth = scene((0, 0, 100, 100), (150, 0, 100, 100)).ground_truth()
    results = [
        found((0, 0, 100, 100), 0.9),
        found((0, 150, 100, 100), 0.8),
        found((150, 0, 100, 78), 0.7),
    ]
    loose, strict = (51 + 50 * 2 / 3) / 101, 51 / 101
    expected = {"AP": 0.6 * loose + 0.4 * strict, "AP50": loose, "AP75": loose, "AP_small": None, "AP_medium": None}
    expected["AP_large"] = expected["AP"]
    precision = average_precision(truth, results)
    for kind in ("box", "mask"):
        assert precision[kind] == pytest.approx(expected), kind
    assert capsys.readouterr().out == ""


def test_masks_are_judged_by_their_own_size() -> None:
    """An object of 20 x 20 pixels within a box of 100 x 100 is small, and its box large."""
    coco = scene((0, 0, 20, 20))
    thing = coco.images[0].objects[0]._replace(box=(0, 0, 100, 100), area=400.0)
    coco.images[0].objects[0] = thing
    result = found((0, 0, 20, 20), 0.9) | {"bbox": [0, 0, 100, 100]}
    # besides, a wrong detection of a size that does not count among the small ones
    wrong = found((150, 150, 100, 100), 0.95) | {"bbox": [150, 150, 10, 10]}
    precision = average_precision(coco.ground_truth(), [result, wrong])
    assert precision["mask"]["AP_small"] == pytest.approx(1.0)
    assert precision["mask"]["AP"] == pytest.approx(0.5)


def test_detections_in_a_crowd_are_neither_right_nor_wrong() -> None:
    truth = scene((0, 0, 50, 50), crowd=(100, 100, 150, 150)).ground_truth()
    results = [found((0, 0, 50, 50), 0.5), found((110, 110, 40, 40), 0.9), found((170, 110, 40, 40), 0.9)]
    assert average_precision(truth, results)["box"]["AP"] == pytest.approx(1.0)
    assert average_precision(truth, [*results, found((60, 0, 30, 30), 0.9)])["box"]["AP"] == pytest.approx(0.5)


def test_nothing_found_and_nothing_to_find() -> None:
    assert average_precision(scene((0, 0, 50, 50)).ground_truth(), [])["box"]["AP"] == 0.0
    assert average_precision(scene().ground_truth(), [])["mask"]["AP"] is None
    assert average_precision(scene().ground_truth(), [found((0, 0, 9, 9), 0.9)])["mask"]["AP"] is None


def test_an_annotation_with_id_0_can_be_found(tmp_path: Path) -> None:
    truth = scene((0, 0, 50, 50)).ground_truth()
    truth["annotations"][0]["id"] = 0
    (tmp_path / "a.json").write_text(json.dumps(truth))
    coco = read_coco(tmp_path / "a.json")
    assert average_precision(coco.ground_truth(), [found((0, 0, 50, 50), 0.9)])["box"]["AP"] == pytest.approx(1.0)


def test_detections_in_cocos_layout() -> None:
    """From a canvas on which 40 x 60 pixels became 20 x 30: label 1 is category 3, the first; boxes double."""
    coco = CocoSet("", {3: "a", 8: "b"}, [CocoImage(5, "", 1, 1), CocoImage(6, "", 40, 60)], 0)
    sample = Sample(torch.zeros(3, 20, 30, dtype=torch.uint8), {}, 1)
    masks = torch.zeros(2, 1, 28, 28)
    masks[0], masks[1, :, :, :14] = 1, 1
    boxes = torch.tensor([[0.0, 0.0, 30.0, 20.0], [5.0, 5.0, 15.0, 10.0]])
    detections = {"boxes": boxes, "labels": torch.tensor([2, 1]), "scores": torch.tensor([0.75, 0.5]), "masks": masks}
    first, second = in_coco_layout(detections, sample, coco)
    assert (first["image_id"], first["category_id"], first["score"]) == (6, 8, 0.75)
    assert (second["image_id"], second["category_id"], second["score"]) == (6, 3, 0.5)
    assert first["bbox"] == [0, 0, 60, 40]
    assert second["bbox"] == [10, 10, 20, 10]
    whole, half = (decode_mask(result["segmentation"]) for result in (first, second))
    assert whole.shape == half.shape == (40, 60)
    assert whole[1:-1, 1:-1].all()
    assert half[11:19, 11:19].all()
    assert half.sum() <= 11 * 12
    assert json.loads(json.dumps([first, second])) == [first, second]
    none = {name: values[:0] for name, values in detections.items()}
    assert in_coco_layout(none, sample, coco) == []


def test_results_can_be_read_by_pycocotools() -> None:
    from pycocotools.coco import COCO  # type: ignore[import-untyped]

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = scene((0, 0, 100, 100)).ground_truth()
        truth.createIndex()
        loaded = truth.loadRes([found((0, 0, 100, 100), 0.9)])
    assert len(loaded.anns) == 1


def test_learning_rate() -> None:
    run, total = DetectionRun(), 184_375  # ViTDet's steps for 100 epochs, whose drops are at 163,889 and 177,546.3
    assert total_steps(run, 118_000) == total
    assert step_learning_rate(0, total, run) == pytest.approx(1e-7)
    assert step_learning_rate(125, total, run) == pytest.approx(1e-4 * 0.5005)
    assert [step_learning_rate(step, total, run) for step in (250, 163_888)] == [1e-4] * 2
    assert step_learning_rate(163_889, total, run) == pytest.approx(1e-5)
    assert step_learning_rate(177_546, total, run) == pytest.approx(1e-5)
    assert step_learning_rate(177_547, total, run) == pytest.approx(1e-6)
    assert step_learning_rate(10, 100, run) == 1e-4  # warm-up is a tenth of a short run


def test_learning_rates_of_the_layers() -> None:
    encoder = Encoder(image_size=(16, 16), patch_size=4, width=32, depth=3, heads=2)
    sizes = {"image_size": 64, "channels": 8, "head_width": 8, "rois": 4, "global_blocks": 1}
    model = mask_rcnn(encoder, (0.5,) * 3, (0.2,) * 3, classes=2, **sizes)  # type: ignore[arg-type]
    names = {parameter: name for name, parameter in model.named_parameters()}
    of = {names[p]: group for group in groups(model, DetectionRun()) for p in group["params"]}
    assert of.keys() == set(names.values())
    scales = {
        "backbone.encoder.patch_embed.proj.weight": 0.7**4,
        "backbone.encoder.blocks.0.attn.qkv.weight": 0.7**3,
        "backbone.encoder.blocks.2.mlp.fc1.weight": 0.7,
        "backbone.pyramid.levels.p2.0.weight": 1.0,
        "rpn.head.cls_logits.weight": 1.0,
        "roi_heads.mask_predictor.mask_fcn_logits.bias": 1.0,
    }
    for name, scale in scales.items():
        assert of[name]["lr_scale"] == pytest.approx(scale), name
        assert of[name]["weight_decay"] == (0.0 if name.endswith("bias") else 0.1), name


def test_settings_go_through_plain_values() -> None:
    for run in PRESETS.values():
        check_run(run)
        assert from_dict(json.loads(json.dumps(to_dict(run)))) == run


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"batch_size": 0}, "--batch_size: expected 1 or more, got 0"),
        ({"lr": 0.0}, "--lr: expected a number above 0, got 0"),
        ({"steps": -1}, "--steps: expected a number above 0, got -1"),
        ({"clip": float("nan")}, "--clip: expected a number above 0, got nan"),
        ({"layer_decay": 1.5}, "--layer_decay: expected a number above 0, up to 1, got 1.5"),
        ({"jitter": (2.0, 1.0)}, "--jitter: expected two numbers above 0, the lower first, got 2.0 1.0"),
        ({"accumulation_steps": 65}, "--accumulation_steps: expected up to 64 pieces, a batch, got 65"),
    ],
)
def test_settings_without_sense(values: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError) as raised:
        check_run(with_values(DetectionRun(), values))
    assert told in str(raised.value)


TINY = {"image_size": 32, "batch_size": 2, "channels": 8, "head_width": 16, "rois": 8, "window": 3, "global_blocks": 1}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[CocoSet, Path]:
    """Two images with a rectangle each, one without."""
    folder = tmp_path / "images"
    folder.mkdir()
    images = []
    for number in range(3):
        box = (3 + number, 4, 12, 10)
        pixels = np.random.default_rng(number).integers(0, 90, (24, 32, 3), dtype=np.uint8)
        pixels[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] += 120
        Image.fromarray(pixels).save(folder / f"{number}.png")
        things = [CocoObject(4, box, run_lengths(box, (24, 32)), 120.0, False)] if number < 2 else []
        images.append(CocoImage(number, f"{number}.png", 24, 32, things))
    return CocoSet("tiny", {4: "cat"}, images, 0), folder


class Silent:
    def start(self, step: int, total: int, batch_size: int) -> None: ...
    def advance(self) -> None: ...
    def metrics(self, row: dict[str, Any]) -> None: ...
    def stop(self) -> None: ...


def trainer(pair: tuple[CocoSet, Path], folder: Path, **more: Any) -> DetectionTrainer:
    torch.manual_seed(0)
    encoder = Encoder(image_size=(16, 16), patch_size=4, width=32, depth=2, heads=2, drop_path=0.2)
    run = with_values(PRESETS["small"], TINY | {"steps": 4, "log_every": 2} | more)
    backbone = Backbone(encoder, (0.5,) * 3, (0.25,) * 3)
    return DetectionTrainer(backbone, run, pair, pair, folder, device=torch.device("cpu"))


def test_an_interrupted_run_ends_as_if_it_had_not_been(pair: tuple[CocoSet, Path], tmp_path: Path) -> None:
    straight = trainer(pair, tmp_path / "straight")
    (tmp_path / "straight").mkdir()
    outcome = straight.fit(Silent(), [])
    assert outcome is not None
    (tmp_path / "broken").mkdir()
    first = trainer(pair, tmp_path / "broken")
    signals: list[int] = []

    class Interrupting(Silent):
        def advance(self) -> None:
            if first.step == 2:
                signals.append(15)

    assert first.fit(Interrupting(), signals) is None
    second = trainer(pair, tmp_path / "broken")
    second.restore()
    assert second.step == 2
    again = second.fit(Silent(), [])
    assert again is not None
    for (name, one), two in zip(straight.model.state_dict().items(), second.model.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
    assert outcome.detections == again.detections


def test_a_batch_in_pieces_is_nearly_the_same_step(pair: tuple[CocoSet, Path], tmp_path: Path) -> None:
    """Not exactly: the boxes that the heads are trained on are drawn image by image."""
    transform = ScaleJitter(32, (1, 1), 0.0)
    first = next(training_samples(*pair, transform, batch_size=3, seed=0))
    sample = next(sample for sample in first if len(sample.target["boxes"]))
    sums = []
    for accumulation_steps in (1, 2):
        trained = trainer(pair, tmp_path, accumulation_steps=accumulation_steps)
        assert isinstance(trained.encoder.blocks[1], Block)
        trained.encoder.blocks[1].drop_path = 0.0
        trained.train_step([sample, sample])
        sums.append(trained.sums)
    assert_close(sums[0], sums[1], rtol=0.2, atol=0.02)


def test_pictures_show_annotations_and_detections(pair: tuple[CocoSet, Path]) -> None:
    coco, folder = pair
    results: list[dict[str, Any]] = []
    bare = np.asarray(detection_sheet(coco, folder, results, number=3))
    thing = coco.images[2]
    from pycocotools import mask

    encoded = mask.frPyObjects(run_lengths((3, 4, 12, 10), (24, 32)), 24, 32)
    segmentation = {"counts": encoded["counts"].decode(), "size": encoded["size"]}
    results = [{"image_id": thing.id, "category_id": 4, "bbox": [3, 4, 12, 10], "segmentation": segmentation}]
    low, high = ([results[0] | {"score": score}] for score in (0.4, 0.9))
    assert np.array_equal(np.asarray(detection_sheet(coco, folder, low, number=3)), bare)
    shown = np.asarray(detection_sheet(coco, folder, high, number=3))
    changed = (shown != bare).any(axis=2)
    third, right = 24 + 2 * (HEIGHT + 6), shown.shape[1] // 2
    assert changed[third:, right:].any()
    assert not changed[:third].any()
    assert not changed[:, :right].any()


def test_eight_photographs_are_learned_by_heart(shared: Path, tmp_path: Path) -> None:
    """A small network from scratch, a minute or two on one core; 0.91 and 0.72 were measured."""
    folder = shared / "data/coco_mini"
    coco = read_coco(folder / "annotations/instances_train2017.json")

    def plain(image: CocoImage) -> bool:
        large = [not thing.crowd and thing.area > 0.04 * image.height * image.width for thing in image.objects]
        return 1 <= len(large) <= 3 and all(large)

    chosen = CocoSet(coco.path, coco.categories, [image for image in coco.images if plain(image)][:8], 0)
    torch.manual_seed(0)
    encoder = Encoder(image_size=(128, 128), patch_size=16, width=96, depth=4, heads=4)
    values: dict[str, Any] = {"image_size": 128, "steps": 250, "lr": 2e-3, "layer_decay": 1.0, "weight_decay": 0.0}
    values |= {"jitter": (1.0, 1.0), "flip": 0.0, "window": 4, "channels": 32, "head_width": 128, "rois": 32}
    run = with_values(PRESETS["small"], values)
    set_ = (chosen, folder / "train2017")
    backbone = Backbone(encoder, (0.45,) * 3, (0.25,) * 3)
    outcome = DetectionTrainer(backbone, run, set_, set_, tmp_path, device=torch.device("cpu")).fit(Silent(), [])
    assert outcome is not None
    box, mask = (outcome.precision[kind]["AP"] for kind in ("box", "mask"))
    assert box is not None
    assert box > 0.6
    assert mask is not None
    assert mask > 0.6
