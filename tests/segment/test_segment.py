"""Training of segmenters: schedule, loss, resume, files, settings, and learning with all parts together."""

import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from hardpatch.data.reading import Reading
from hardpatch.errors import TrainingError, UserError
from hardpatch.models.encoder import Encoder
from hardpatch.segment.batches import LabeledBatch
from hardpatch.segment.check import check_sets
from hardpatch.segment.data import IGNORED, SegmentationSet, open_segmentation
from hardpatch.segment.file import load_segmenter, save_segmenter
from hardpatch.segment.labels import find_labels
from hardpatch.segment.measure import Inference, predict_logits
from hardpatch.segment.model import UperNet
from hardpatch.segment.pictures import write_pictures
from hardpatch.segment.settings import PRESETS, SegmentSettings, resolved
from hardpatch.segment.settings import check as check_settings
from hardpatch.segment.trainer import SegmentJob, evenly_spread, pixel_loss, poly_learning_rate
from hardpatch.train import checkpoint
from hardpatch.train.device import start_fabric
from hardpatch.train.loop import fit
from hardpatch.train.metrics import read_metrics
from hardpatch.train.progress import Silent
from tests.segment.small import random_norms, small_upernet

INFERENCE = Inference(24, "whole", (16, 16), (8, 8))
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
    "val_every": 0.8,  # of five images: every two steps
    "log_every": 1,
    "workers": 0,
}


class Interruption(Silent):
    """Send SIGTERM to this process after a number of steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def advance(self) -> None:
        self.steps -= 1
        if self.steps == 0:
            os.kill(os.getpid(), signal.SIGTERM)


def train(
    model: UperNet, pairs: SegmentationSet, folder: Path, interrupt_after: int = 0, **overrides: Any
) -> SegmentJob:
    """Train and evaluate on the same pairs, from the newest checkpoint of the folder if there is one."""
    folder.mkdir(exist_ok=True)
    settings = SegmentSettings(**{**TINY, **overrides})
    fabric = start_fabric("cpu", settings.precision, "--", settle=False)
    job = SegmentJob(settings, folder, pairs, pairs, model, fabric)
    newest = checkpoint.newest(folder)
    if newest is not None:
        job.restore(newest)
    fit(job, Interruption(interrupt_after))
    return job


def test_poly_schedule_by_hand() -> None:
    run = SegmentSettings(warmup_steps=10, lr=1.0)
    assert poly_learning_rate(0, 100, run) == 0.0
    assert poly_learning_rate(5, 100, run) == pytest.approx(0.95 * 0.5)
    assert poly_learning_rate(10, 100, run) == pytest.approx(0.9)
    assert poly_learning_rate(75, 100, run) == pytest.approx(0.25)
    assert poly_learning_rate(99, 100, run) == pytest.approx(0.01)
    squared = SegmentSettings(warmup_steps=0, lr=1.0, power=2.0, min_lr=0.2)
    assert poly_learning_rate(0, 100, squared) == 1.0
    assert poly_learning_rate(50, 100, squared) == pytest.approx(0.2 + 0.8 * 0.25)


def test_pixel_loss_equals_a_loop() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 6, requires_grad=True)
    labels = torch.randint(0, 3, (2, 8, 12)).byte()
    labels[torch.rand(2, 8, 12) < 0.3] = IGNORED
    resized = F.interpolate(logits.detach(), (8, 12), mode="bilinear")
    total, count = 0.0, 0
    for image, row, column in np.ndindex(2, 8, 12):
        label = int(labels[image, row, column])
        if label != IGNORED:
            total -= float(resized[image, :, row, column].log_softmax(dim=0)[label])
            count += 1
    assert pixel_loss(logits, labels).item() == pytest.approx(total / count, rel=1e-5)
    loss = pixel_loss(logits, torch.full_like(labels, IGNORED))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def with_dropout() -> UperNet:
    model = small_upernet(classes=3, dropout=0.3)
    model.encoder.blocks[-1].drop_path = 0.3  # type: ignore[assignment]
    return model


@pytest.mark.parametrize("accumulation_steps", [1, 2])
def test_an_interrupted_run_resumes_to_the_same_bits(
    pairs: SegmentationSet, tmp_path: Path, accumulation_steps: int
) -> None:
    settings: dict[str, Any] = {"accumulation_steps": accumulation_steps, "batch_size": 4, "val_every": 1.6}
    whole = train(with_dropout(), pairs, tmp_path / "whole", **settings)
    interrupted = train(with_dropout(), pairs, tmp_path / "parts", interrupt_after=3, **settings)
    assert (interrupted.step, whole.step) == (3, 4)
    resumed = train(with_dropout(), pairs, tmp_path / "parts", **settings)
    assert whole.evaluation is not None
    assert resumed.evaluation is not None
    assert resumed.evaluation.measures == whole.evaluation.measures
    assert_close(resumed.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
    assert not torch.equal(whole.model.head.classifier.weight, with_dropout().head.classifier.weight)
    rows = [
        [
            {name: value for name, value in row.items() if name != "images_per_second"}
            for row in read_metrics(tmp_path / folder / "metrics.jsonl")
        ]
        for folder in ("parts", "whole")
    ]
    assert [row["step"] for row in rows[1]] == [1, 2, 3, 4]
    assert ["miou" in row for row in rows[1]] == [False, True, False, True]
    assert len(rows[0]) == 4
    for resumed_row, whole_row in zip(*rows, strict=True):
        assert resumed_row == pytest.approx(whole_row)
    finished = train(with_dropout(), pairs, tmp_path / "parts", **settings)
    assert finished.step == 4
    finished.evaluate()
    assert finished.evaluation is not None
    assert finished.evaluation.measures == whole.evaluation.measures


def test_half_precision_is_close(pairs: SegmentationSet, tmp_path: Path) -> None:
    losses = {}
    for precision in ("fp32", "bf16"):
        job = train(small_upernet(classes=3), pairs, tmp_path / precision, precision=precision)
        assert all(parameter.dtype == torch.float32 for parameter in job.model.parameters())
        losses[precision] = [row["loss"] for row in read_metrics(tmp_path / precision / "metrics.jsonl")]
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)


def test_gray_images_and_pictures(pairs: SegmentationSet, tmp_path: Path) -> None:
    encoder = Encoder(image_size=(16, 24), patch_size=4, channels=1, width=32, depth=4, heads=2)
    job = train(UperNet(encoder, 3, mean=[0.4], std=[0.2], channels=8), pairs, tmp_path / "run")
    assert job.evaluation is not None
    assert job.evaluation.maps.keys() == {0, 1, 2, 3, 4}
    (tmp_path / "run" / "pictures").mkdir()
    pictures = write_pictures(tmp_path / "run", job.evaluation, pairs, reading=Reading(1))
    assert [path.name for path in pictures] == ["curves.png", "predictions.png"]
    assert all(path.stat().st_size > 5000 for path in pictures)
    without_maps = write_pictures(tmp_path / "run", job.evaluation._replace(maps={}), pairs, reading=Reading(1))
    assert [path.name for path in without_maps] == ["curves.png"]


def test_a_loss_that_is_not_finite_is_not_saved(pairs: SegmentationSet, tmp_path: Path) -> None:
    model = small_upernet(classes=3)
    with torch.no_grad():
        model.head.classifier.weight.fill_(math.nan)
    with pytest.raises(TrainingError, match=r"in 1 of the last 100 steps, up to step 1, the limit is 0"):
        train(model, pairs, tmp_path / "run", bad_steps=0)
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_weights_that_are_not_finite_are_not_saved(
    pairs: SegmentationSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_step = SegmentJob.train_step

    def diverging_step(self: SegmentJob, batch: LabeledBatch, *, observe: bool = False) -> None:
        train_step(self, batch, observe=observe)
        if self.step == 4:  # the loss is still finite
            with torch.no_grad():
                next(self.model.neck.parameters()).view(-1)[0] = math.inf

    monkeypatch.setattr(SegmentJob, "train_step", diverging_step)
    with pytest.raises(TrainingError, match="a weight became NaN or infinite in step 4; nothing of that"):
        train(small_upernet(classes=3), pairs, tmp_path / "run", checkpoint_minutes=0.0)
    saved = max((tmp_path / "run" / "checkpoints").iterdir())
    assert saved.name == "step_00000003"
    assert all(value.isfinite().all() for value in load_file(saved / checkpoint.WEIGHTS).values())


def test_pairs_left_out_before_training_are_counted(pairs: SegmentationSet, tmp_path: Path) -> None:
    settings = SegmentSettings(**TINY, max_bad_fraction=0.4)
    fabric = start_fabric("cpu", "fp32", "--", settle=False)
    rest = pairs.without({0, 1})
    model = small_upernet(classes=3)
    job = SegmentJob(settings, tmp_path, rest, rest, model, fabric, (["a: broken", "b: broken"], ["c: broken"]))
    assert (len(job.bad_files), job.bad_files.total, len(job.bad_val), job.bad_val.total) == (2, 5, 1, 4)
    with pytest.raises(UserError, match="max_bad_fraction: 3 of 6 images"):
        SegmentJob(settings, tmp_path, rest, rest, model, fabric, (["a", "b", "c"], []))


@pytest.mark.parametrize("positions", ["sincos", "relative"])
def test_a_segmenter_is_loaded_from_its_file(positions: str, tmp_path: Path) -> None:
    model = small_upernet(positions, classes=3).eval()
    random_norms(model)
    save_segmenter(tmp_path / "segmenter.safetensors", model, ["a", "b", "c"], INFERENCE)
    images = torch.randint(0, 256, (1, 3, 20, 28), dtype=torch.uint8)
    for path in (tmp_path, tmp_path / "segmenter.safetensors"):
        loaded, classes, inference = load_segmenter(path)
        assert classes == ("a", "b", "c")
        assert inference == INFERENCE
        with torch.no_grad():
            assert torch.equal(predict_logits(loaded, images, inference), predict_logits(model, images, INFERENCE))
    assert [path.name for path in tmp_path.iterdir()] == ["segmenter.safetensors"]
    with pytest.raises(UserError, match="nowhere does not exist"):
        load_segmenter(tmp_path / "nowhere")
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match="is not a segmenter; expected a file that hardpatch segment wrote"):
        load_segmenter(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"batch_size": 1}, "--batch_size: expected 2 or more images a micro-batch, for batch norm, got 1"),
        ({"accumulation_steps": 2}, "--batch_size: expected 2 or more images a micro-batch, for batch norm, got 2"),
        ({"crop": (18, 16)}, "--crop: expected multiples of the patch size 4, got 18 16"),
        ({"crop": (0, 16)}, "--crop: expected for each number a whole number from 1, got [0, 16]"),
        ({"crop": (16, 16, 16)}, "--crop: expected two numbers, got 16 16 16"),
        ({"stride": (17, 8), "inference": "slide"}, "--stride: expected from 1 to the crop's 16 16, got 17 8"),
        ({"scale": (2.0, 0.5)}, "--scale: expected 0 < lowest <= highest <= 1,000, got [2.0, 0.5]"),
        ({"warmup_steps": 4}, "--warmup_steps: expected fewer than the 4 steps, got 4"),
        (
            {"warmup_steps": 4, "steps": None, "epochs": 1.0},
            "--warmup_steps: expected fewer than the 2 steps of epochs 1.0, batch_size 2, least_steps None, got 4",
        ),
        ({"lr": 0.0}, "--lr: expected a number above 0, got 0.0"),
        ({"lr": math.nan}, "--lr: expected a number above 0, got nan"),
        ({"layer_decay": 1.5}, "--layer_decay: expected a number above 0, up to 1, got 1.5"),
        ({"drop_path": 1.0}, "--drop_path: expected a number from 0, below 1, got 1.0"),
        ({"dropout": 1.0}, "--dropout: expected a number from 0, below 1, got 1.0"),
        ({"cat_max_ratio": 0.0}, "--cat_max_ratio: expected a number above 0, up to 1, got 0.0"),
        ({"min_lr": 1.0}, "--min_lr: expected from 0 to the learning rate 0.01, got 1.0"),
        ({"steps": 0}, "--steps: expected a whole number from 1, got 0"),
        ({"seed": -1}, "--seed: expected a whole number from 0, got -1"),
        ({"val_every": 0.0}, "--val_every: expected a number above 0, got 0.0"),
        ({"epochs": 2.0}, "--epochs, --steps: expected one of the two; say how long to train"),
        ({"checkpoint_minutes": -1.0}, "--checkpoint_minutes: expected a number from 0, got -1.0"),
        ({"auxiliary_weight": -0.1}, "--auxiliary_weight: expected a number from 0, got -0.1"),
        ({"short_side": 0}, "--short_side: expected a whole number from 1, got 0"),
    ],
)
def test_invalid_settings(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        check_settings(SegmentSettings(**{**TINY, **setting}), 4, 5)
    assert str(error.value) == message


def test_presets_are_valid() -> None:
    check_settings(resolved(PRESETS["hpm"], 12), 16, 20210)
    check_settings(PRESETS["small"], 8, 60)
    check_settings(SegmentSettings(**TINY), 4, 5)


def test_pictured_images_are_evenly_spread() -> None:
    assert evenly_spread(20) == (1, 5, 8, 11, 15, 18)
    assert evenly_spread(2) == (0, 1)


def test_eight_images_are_memorized(shared: Path, tmp_path: Path) -> None:
    """All parts together can learn eight street scenes in 48 x 32 px, in half a minute on one core."""
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
    assert (check_sets({"train": pairs}).pixels["train"] > 0).all()  # eleven classes
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
        "val_every": None,
        "log_every": 100,
    }
    job = train(model, pairs, tmp_path / "run", **settings)
    assert job.evaluation is not None
    assert job.evaluation.measures.miou > 0.8
