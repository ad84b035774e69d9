"""Segmenters: measures against loops, windows against whole images, the schedule, a run that stops and goes on."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from hardpatch.errors import TrainingError, UserError
from hardpatch.models.encoder import Encoder
from hardpatch.segment.data import IGNORED, Labels, SegmentationSet, check, find_labels, open_segmentation
from hardpatch.segment.file import load_segmenter, save_segmenter
from hardpatch.segment.measure import (
    Confusion,
    Inference,
    Judged,
    evaluate,
    measures,
    predict_logits,
    window_places,
)
from hardpatch.segment.model import UperNet
from hardpatch.segment.pictures import label_sheet, palette, table, write_report
from hardpatch.segment.settings import PRESETS, SegmentationRun, check_run
from hardpatch.segment.trainer import SegmentationTrainer, inference_of, pixel_loss, poly_learning_rate, spread
from hardpatch.train.metrics import read_metrics
from tests.segment.test_data import blocks, write_pair
from tests.segment.test_model import random_norms, small_upernet

CPU = torch.device("cpu")
WHOLE = Inference(24, "whole", (16, 16), (8, 8))
TINY: dict[str, Any] = {
    "steps": 4,
    "batch_size": 2,
    "crop": (16, 16),
    "short_side": 24,
    "channels": 8,
    "lr": 1e-2,
    "warmup_steps": 1,
    "inference": "whole",
    "stride": (8, 8),
    "val_every": 2,
    "log_every": 1,
}


class Silent:
    """A progress bar that is not there."""

    def start(self, step: int, total: int, batch_size: int) -> None: ...
    def advance(self) -> None: ...
    def metrics(self, row: dict[str, Any]) -> None: ...
    def stop(self) -> None: ...


@pytest.fixture
def pairs(tmp_path: Path) -> SegmentationSet:
    """Five images of 24 x 32 px, three classes."""
    for k in range(5):
        write_pair(tmp_path / "set" / "images", tmp_path / "set" / "labels", str(k), blocks(k))
    return open_segmentation(tmp_path / "set", "train", Labels(("sky", "road", "car"), (0, 1, 2)))


def slow_measures(truth: Tensor, predicted: Tensor, classes: int) -> tuple[list[float], list[float], float]:
    """IoU and accuracy of each class and pixel accuracy, pixel by pixel."""
    iou, accuracy, right, counted = [], [], 0, 0
    pixels = [(t, p) for t, p in zip(truth.flatten().tolist(), predicted.flatten().tolist(), strict=True) if t != 255]
    for k in range(classes):
        both = sum(t == k and p == k for t, p in pixels)
        either = sum(k in (t, p) for t, p in pixels)
        true = sum(t == k for t, _ in pixels)
        iou.append(both / either if either else math.nan)
        accuracy.append(both / true if true else math.nan)
        right, counted = right + both, counted + true
    return iou, accuracy, right / counted


@given(st.integers(0, 2**32), st.floats(0, 0.9))
def test_measures_equal_a_loop(seed: int, ignored: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, 4, (3, 5, 6), generator=generator).byte()  # class 4 never occurs
    predicted = torch.where(torch.rand(3, 5, 6, generator=generator) < 0.5, truth.long(), 3)
    truth[torch.rand(3, 5, 6, generator=generator) < ignored] = IGNORED
    truth[0, 0, 0] = 0
    confusion = Confusion(5, CPU)
    for one, other in zip(truth, predicted, strict=True):  # as images come in
        confusion.add(one, other)
    found = measures(confusion.matrix())
    iou, accuracy, pixel_accuracy = slow_measures(truth, predicted, 5)
    assert found.iou == pytest.approx(iou, nan_ok=True)
    assert found.accuracy == pytest.approx(accuracy, nan_ok=True)
    assert math.isnan(found.iou[4])
    assert found.pixel_accuracy == pytest.approx(pixel_accuracy)
    assert found.miou == pytest.approx(np.nanmean(iou))
    assert found.mean_accuracy == pytest.approx(np.nanmean(accuracy))
    assert sum(found.pixels) == (truth != IGNORED).sum()


def test_measures_by_hand() -> None:
    confusion = Confusion(3, CPU)
    confusion.add(torch.tensor([0, 0, 0, 1, 255, 255]).byte(), torch.tensor([0, 0, 1, 1, 1, 2]))
    found = measures(confusion.matrix())
    assert confusion.matrix().tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert found.iou[:2] == pytest.approx((2 / 3, 1 / 2))
    assert found.miou == pytest.approx(7 / 12)
    assert found.mean_accuracy == pytest.approx((2 / 3 + 1) / 2)
    assert found.pixel_accuracy == 0.75
    told = found.to_dict(["a", "b", "c"])
    assert told["classes"][2] == {"name": "c", "iou": None, "accuracy": None, "pixels": 0}
    lines = table(found, ["a", "b", "c"]).splitlines()
    assert lines[1].split() == ["a", "66.67", "66.67", "75.00"]
    assert lines[3].split() == ["c", "-", "-", "0.00"]


@torch.no_grad()
def test_a_window_that_covers_the_image_is_the_whole() -> None:
    model = small_upernet().eval()
    random_norms(model)
    for size in ((16, 24), (15, 22), (24, 24)):
        images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
        slide = Inference(24, "slide", (24, 24), (8, 8))
        found = predict_logits(model, images, slide)
        assert found.shape == (2, 5, *size)
        assert_close(found, predict_logits(model, images, WHOLE))


@torch.no_grad()
def test_windows_are_averaged_where_they_overlap() -> None:
    model = small_upernet().eval()
    random_norms(model)
    images = torch.randint(0, 256, (2, 3, 30, 45), dtype=torch.uint8)  # fills up to 32 x 48
    found = predict_logits(model, images, Inference(24, "slide", (16, 24), (12, 16)))
    filled = F.pad(model.normalize(images), (0, 3, 0, 2))
    total, times = torch.zeros(2, 5, 32, 48), torch.zeros(32, 48)
    for top in (0, 12, 16):
        for left in (0, 16, 24):
            logits = model(filled[:, :, top : top + 16, left : left + 24]).main
            total[:, :, top : top + 16, left : left + 24] += F.interpolate(logits, (16, 24), mode="bilinear")
            times[top : top + 16, left : left + 24] += 1
    assert times.min() == 1
    assert times.max() == 4
    assert_close(found, (total / times)[:, :, :30, :45], rtol=1e-4, atol=1e-4)


def test_places_of_windows() -> None:
    assert window_places(512, 512, 341) == [0]
    assert window_places(683, 512, 341) == [0, 171]
    assert window_places(1024, 512, 341) == [0, 341, 512]
    assert window_places(1194, 512, 341) == [0, 341, 682]


def test_images_are_compared_at_the_size_of_their_labels(pairs: SegmentationSet) -> None:
    model = small_upernet(classes=3)
    random_norms(model)
    inference = Inference(48, "whole", (16, 16), (8, 8))  # twice as large as the files
    judged = evaluate(model.train(), pairs, inference, device=CPU, keep=(0, 3))
    assert model.training  # as it was
    model.eval()
    confusion = Confusion(3, CPU)
    for number in range(5):
        pixels = torch.from_numpy(pairs.image(number, 3)).permute(2, 0, 1)[None]
        large = F.interpolate(pixels, (48, 64), mode="bicubic", antialias=True)
        logits = model(model.normalize(large)).main.detach()
        classes = F.interpolate(logits, (24, 32), mode="bilinear").argmax(dim=1)[0]
        confusion.add(torch.from_numpy(pairs.label_map(number)), classes)
        if number in judged.maps:
            assert torch.equal(judged.maps[number], classes.byte())
    assert judged.maps.keys() == {0, 3}
    assert judged.measures == measures(confusion.matrix())


def test_poly_schedule_by_hand() -> None:
    run = SegmentationRun(steps=100, warmup_steps=10, lr=1.0)
    assert poly_learning_rate(0, run) == 0.0
    assert poly_learning_rate(5, run) == pytest.approx(0.95 * 0.5)
    assert poly_learning_rate(10, run) == pytest.approx(0.9)
    assert poly_learning_rate(75, run) == pytest.approx(0.25)
    assert poly_learning_rate(99, run) == pytest.approx(0.01)
    squared = SegmentationRun(steps=100, warmup_steps=0, lr=1.0, power=2.0, min_lr=0.2)
    assert poly_learning_rate(0, squared) == 1.0
    assert poly_learning_rate(50, squared) == pytest.approx(0.2 + 0.8 * 0.25)


def test_pixel_loss_equals_a_loop() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 6, requires_grad=True)
    labels = torch.randint(0, 3, (2, 8, 12)).byte()
    labels[torch.rand(2, 8, 12) < 0.3] = IGNORED
    whole = F.interpolate(logits.detach(), (8, 12), mode="bilinear")
    total, count = 0.0, 0
    for image, row, column in np.ndindex(2, 8, 12):
        label = int(labels[image, row, column])
        if label != IGNORED:
            total -= float(whole[image, :, row, column].log_softmax(dim=0)[label])
            count += 1
    assert pixel_loss(logits, labels).item() == pytest.approx(total / count, rel=1e-5)
    nothing = pixel_loss(logits, torch.full_like(labels, IGNORED))
    nothing.backward()
    assert nothing.item() == 0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def train(model: UperNet, pairs: SegmentationSet, folder: Path, stop: int | None = None, **more: Any) -> Judged | None:
    folder.mkdir(exist_ok=True)
    trainer = SegmentationTrainer(model, SegmentationRun(**{**TINY, **more}), pairs, pairs, folder, device=CPU)
    trainer.restore()
    return trainer.fit(Silent(), lambda: trainer.step == stop)


def test_a_run_that_stops_goes_on_to_the_same_bits(pairs: SegmentationSet, tmp_path: Path) -> None:
    whole, parts = small_upernet(classes=3, dropout=0.3), small_upernet(classes=3, dropout=0.3)
    for model in (whole, parts):
        model.encoder.blocks[-1].drop_path = 0.3  # type: ignore[assignment]
    once = train(whole, pairs, tmp_path / "whole")
    assert once is not None
    assert train(parts, pairs, tmp_path / "parts", stop=3) is None
    other = small_upernet(classes=3, dropout=0.3)
    other.encoder.blocks[-1].drop_path = 0.3  # type: ignore[assignment]
    twice = train(other, pairs, tmp_path / "parts")
    assert twice is not None
    assert twice.measures == once.measures
    assert_close(other.state_dict(), whole.state_dict(), rtol=0, atol=0)
    assert not torch.equal(whole.head.classifier.weight, small_upernet(classes=3).head.classifier.weight)
    again = train(small_upernet(classes=3), pairs, tmp_path / "parts")  # a finished run is judged again
    assert again is not None
    assert again.measures == once.measures


def test_half_precision_is_close(pairs: SegmentationSet, tmp_path: Path) -> None:
    rows = {}
    for precision in ("fp32", "bf16"):
        model = small_upernet(classes=3)
        judged = train(model, pairs, tmp_path / precision, precision=precision)
        assert judged is not None
        assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
        rows[precision] = [row["loss"] for row in read_metrics(tmp_path / precision / "metrics.jsonl")]
    assert rows["bf16"] != rows["fp32"]
    assert rows["bf16"] == pytest.approx(rows["fp32"], rel=0.02)


def test_gray_images(tmp_path: Path) -> None:
    for k in range(3):
        write_pair(tmp_path / "set" / "images", tmp_path / "set" / "labels", str(k), blocks(k))
    pairs = open_segmentation(tmp_path / "set", "train", Labels(("sky", "road", "car"), (0, 1, 2)))
    encoder = Encoder(image_size=(16, 24), patch_size=4, channels=1, width=32, depth=4, heads=2)
    model = UperNet(encoder, 3, mean=[0.4], std=[0.2], channels=8)
    judged = train(model, pairs, tmp_path / "run")
    assert judged is not None
    judged = Judged(judged.measures, dict(list(judged.maps.items())[:1]))
    pictures = write_report(tmp_path / "run", judged, pairs, 1, {"more": 1})
    assert all(path.stat().st_size > 5000 for path in pictures)
    assert json.loads((tmp_path / "run" / "result.json").read_text())["more"] == 1


def test_a_loss_that_is_no_number(pairs: SegmentationSet, tmp_path: Path) -> None:
    model = small_upernet(classes=3)
    with torch.no_grad():
        model.head.classifier.weight.fill_(math.nan)
    with pytest.raises(TrainingError, match=r"between steps 1 and 1; .* --lr below 0\.01"):
        train(model, pairs, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize("positions", ["sincos", "relative"])
def test_a_segmenter_comes_back_from_its_file(positions: str, tmp_path: Path) -> None:
    model = small_upernet(positions, classes=3).eval()
    random_norms(model)
    inference = inference_of(SegmentationRun(**TINY))
    save_segmenter(tmp_path / "segmenter.safetensors", model, ["a", "b", "c"], inference)
    images = torch.randint(0, 256, (1, 3, 20, 28), dtype=torch.uint8)
    for path in (tmp_path, tmp_path / "segmenter.safetensors"):
        found = load_segmenter(path)
        assert found.classes == ("a", "b", "c")
        assert found.inference == inference
        with torch.no_grad():
            assert torch.equal(
                predict_logits(found.model, images, found.inference), predict_logits(model, images, inference)
            )
    assert [path.name for path in tmp_path.iterdir()] == ["segmenter.safetensors"]
    with pytest.raises(UserError, match="is no segmenter"):
        load_segmenter(tmp_path / "nowhere")


def test_pictures() -> None:
    colors = palette()
    assert colors[:4].tolist() == [[128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128]]  # PASCAL VOC's 1 to 4
    assert colors[IGNORED].tolist() == [0, 0, 0]
    assert len({tuple(color) for color in colors.tolist()}) == 256
    image = np.zeros((20, 30, 1), dtype=np.uint8)
    truth, predicted = np.zeros((20, 30), dtype=np.uint8), np.ones((20, 30), dtype=np.uint8)
    truth[:, :3] = IGNORED
    figure = label_sheet([(image, truth, predicted)] * 2, ["sky", "$5 road$", "car"])
    assert [axes.get_title() for axes in figure.axes] == ["image", "truth", "prediction", "", "", ""]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["sky", "$5 road$"]
    shown = np.asarray(figure.axes[1].images[0].get_array())
    assert shown[0, 0].tolist() == [0, 0, 0]
    assert shown[0, 5].tolist() == [128, 0, 0]
    with pytest.raises(ValueError, match="rows: expected at least one image"):
        label_sheet([], [])
    assert spread(20) == (1, 5, 8, 11, 15, 18)
    assert spread(2) == (0, 1)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"batch_size": 1}, "--batch_size: expected 2 or more, which batch norm needs, got 1"),
        ({"crop": (18, 16)}, "--crop: expected multiples of the patch size 4, got 18 16"),
        ({"crop": (0, 16)}, "--crop: expected multiples of the patch size 4, got 0 16"),
        ({"crop": (16, 16, 16)}, "--crop: expected two numbers, got 16 16 16"),
        ({"stride": (17, 8), "inference": "slide"}, "--stride: expected from 1 to the crop's 16 16, got 17 8"),
        ({"scale": (2.0, 0.5)}, "--scale: expected two numbers above 0, the lower first, got 2.0 0.5"),
        ({"warmup_steps": 4}, "--warmup_steps: expected fewer than the 4 steps, got 4"),
        ({"lr": 0.0}, "--lr: expected a number above 0, got 0.0"),
        ({"lr": math.nan}, "--lr: expected a number above 0, got nan"),
        ({"layer_decay": 1.5}, "--layer_decay: expected a number above 0 and up to 1, got 1.5"),
        ({"drop_path": 1.0}, "--drop_path: expected a probability below 1, got 1.0"),
        ({"cat_max_ratio": 0.0}, "--cat_max_ratio: expected a share above 0, got 0.0"),
        ({"min_lr": 1.0}, "--min_lr: expected from 0 to the learning rate 0.01, got 1.0"),
        ({"steps": 0}, "--steps: expected a whole number from 1, got 0"),
        ({"seed": -1}, "--seed: expected 0 or more, got -1"),
    ],
)
def test_settings_that_make_no_sense(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        check_run(SegmentationRun(**{**TINY, **setting}), 4)
    assert str(error.value) == message


def test_presets_are_valid() -> None:
    check_run(PRESETS["paper"], 16)
    check_run(PRESETS["small"], 8)
    check_run(SegmentationRun(**TINY), 4)


def test_eight_images_are_learnt_by_heart(shared: Path, tmp_path: Path) -> None:
    """All parts together can learn: eight street scenes in 48 x 32 px, half a minute on one core."""
    source = shared / "data" / "camvid100"
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for image in sorted((source / "images" / "train").iterdir())[::8]:
        label = source / "labels" / "train" / f"{image.stem}.png"
        for kind, file, filtering in (("images", image, 3), ("labels", label, 0)):  # bicubic, nearest
            with Image.open(file) as picture:
                piece = picture.crop((176, 132, 272, 196)).resize((48, 32), filtering)
            piece.save(tmp_path / kind / f"{image.stem}.png")
    labels = find_labels(source)
    pairs = open_segmentation(tmp_path, "train", labels)
    assert len(pairs) == 8
    assert (check(pairs, "train") > 0).all()  # eleven classes
    torch.manual_seed(0)
    encoder = Encoder(image_size=(32, 48), patch_size=4, width=64, depth=4, heads=4)
    model = UperNet(encoder, len(labels.names), mean=[0.4] * 3, std=[0.3] * 3, channels=32, dropout=0.0)
    settings: dict[str, Any] = {
        "scale": (1.0, 1.0),
        "cat_max_ratio": 1.0,
        "flip": 0.0,
        "photometric": False,
        "drop_path": 0.0,
        "steps": 600,
        "batch_size": 4,
        "crop": (32, 48),
        "stride": (32, 48),
        "short_side": 32,
        "lr": 6e-3,
        "layer_decay": 1.0,
        "weight_decay": 0.0,
        "warmup_steps": 20,
        "val_every": 600,
        "log_every": 100,
    }
    judged = train(model, pairs, tmp_path / "run", **settings)
    assert judged is not None
    assert judged.measures.miou > 0.8
