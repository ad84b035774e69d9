"""Supervised training on half of the patches: the dropped half, the accuracy, and exact resume."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hardpatch.data.sources import open_source
from hardpatch.methods.hpm import HPM
from hardpatch.pretrain.build import initial_model
from hardpatch.pretrain.sections import RunConfig
from hardpatch.study import rows
from hardpatch.study.rows import Keep
from hardpatch.study.scales import SCALES, configure
from hardpatch.study.table_d import TableDJob, dropped_patches, train_supervised
from hardpatch.train import checkpoint
from hardpatch.train.device import start_fabric
from hardpatch.train.progress import Silent


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two classes that differ in the place of a bright patch of 8 x 8 pixels; all else is dark noise."""
    folder = tmp_path_factory.mktemp("labeled")
    rng = np.random.default_rng(0)
    for label in range(2):
        (folder / str(label)).mkdir()
        for number in range(24):
            pixels = rng.integers(0, 60, (32, 32, 3), dtype=np.uint8)
            pixels[8:16, 4 + 16 * label : 12 + 16 * label] = 250
            Image.fromarray(pixels).save(folder / str(label) / f"{number}.png")
    return str(folder)


def settings(images: str, *more: str) -> RunConfig:
    row = next(row for row in rows.read("tableD").rows if row.keep == "random")
    common = ["--data.flip", "0", "--data.crop_scale", "[1,1]", "--data.crop_ratio", "[1,1]", "--optim.lr", "2e-3"]
    common += ["--train.device", "cpu"]
    return configure(rows.read("tableD"), row, SCALES["micro"], data=images, settings=[*common, *more])


def test_dropped_patches() -> None:
    difficulty = torch.tensor([[0.1, 0.9, 0.3, 0.7]])
    noise = torch.tensor([[0.5, 0.2, 0.8, 0.1]])

    def mask_of(keep: Keep) -> list[bool]:
        mask = dropped_patches(keep, difficulty, noise, 0.5)
        assert mask is not None
        return mask[0].tolist()

    assert mask_of("hardest") == [True, False, True, False]
    assert mask_of("easiest") == [False, True, False, True]
    assert mask_of("random") == [True, False, True, False]  # the highest noise
    assert dropped_patches("all", difficulty, noise, 0.5) is None


def test_the_hard_and_the_easy_half_make_the_whole() -> None:
    torch.manual_seed(0)
    difficulty, noise = torch.rand(5, 64), torch.rand(5, 64)
    hard, easy = (dropped_patches(keep, difficulty, noise, 0.5) for keep in ("hardest", "easiest"))
    assert hard is not None
    assert easy is not None
    assert torch.equal(hard, ~easy)


def brightness(run: RunConfig) -> HPM:
    """Stand in for a trained predictor: bright patches are hard."""

    class Brightness(HPM):
        def predict_loss(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean(dim=1).unfold(1, 4, 4).unfold(2, 4, 4).mean(dim=(-1, -2)).flatten(1)

    model = initial_model(run)
    return Brightness(model.host, None)


@pytest.mark.parametrize("keep", ["hardest", "all"])
def test_classes_are_learned_if_the_patches_that_differ_are_seen(images: str, keep: Keep, tmp_path: Path) -> None:
    run = settings(images, "--steps", "80")
    accuracies, signal = train_supervised(run, tmp_path, images, keep, brightness(run), Silent())
    assert signal == 0
    assert accuracies["supervised"] > 0.95
    if keep == "all":
        assert accuracies["supervised"] == accuracies["whole"]


def test_classes_are_not_learned_if_the_patches_that_differ_are_dropped(images: str, tmp_path: Path) -> None:
    # If brightness chose the dropped patches, the positions of the others would give the class away. Here the upper
    # half, in which the bright patches are, is always dropped.
    run = settings(images, "--steps", "80", "--seed", "1")

    class UpperHalf(HPM):
        def predict_loss(self, images: torch.Tensor) -> torch.Tensor:
            return torch.arange(64.0).flip(0).expand(len(images), -1)

    predictor = UpperHalf(initial_model(run).host, None)
    accuracies, _ = train_supervised(run, tmp_path, images, "easiest", predictor, Silent())
    assert 0.2 < accuracies["supervised"] < 0.8


class StopAt(Silent):
    """Kill a run after a number of steps."""

    def __init__(self, step: int) -> None:
        self.left = step

    def advance(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def test_an_interrupted_run_ends_the_same(images: str, tmp_path: Path) -> None:
    run = settings(images, "--steps", "12", "--train.checkpoint_minutes", "0")

    def train(folder: str, progress: Silent) -> dict[str, float]:
        return train_supervised(run, tmp_path / folder, images, "random", None, progress).accuracies

    def last(folder: str) -> Path:
        saved = checkpoint.newest(tmp_path / folder)
        assert saved is not None
        return saved

    expected = train("whole", Silent())
    with pytest.raises(KeyboardInterrupt):
        train("killed", StopAt(7))
    assert last("killed").name == "step_00000006"
    assert train("killed", Silent()) == expected
    assert last("killed").name == last("whole").name == "step_00000012"
    for file in (checkpoint.WEIGHTS, checkpoint.TRAINING):
        assert (last("killed") / file).read_bytes() == (last("whole") / file).read_bytes()


def test_statistics_of_the_images(images: str, tmp_path: Path) -> None:
    run = settings(images, "--steps", "1")
    run = replace(run, data=replace(run.data, mean="computed", std="computed"))
    job = TableDJob(run, tmp_path, images, "all", None, start_fabric("cpu", "fp32", "train."))
    source = open_source(images)
    pixels: Any = np.stack([source.image(i, 3) for i in range(len(source))]) / 255
    assert job.plain.mean.tolist() == pytest.approx(pixels.mean(axis=(0, 1, 2)).tolist(), abs=1e-3)
