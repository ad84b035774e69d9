"""Training under labels on half of the patches: which half, that it learns, and that it can be interrupted."""

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
from hardpatch.study.table_d import Supervised, train_supervised, unseen
from hardpatch.train.progress import Silent

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two classes told apart by where a bright patch of 8 x 8 pixels is; all else is dark noise."""
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
    given = ["--data.flip", "0", "--data.crop_scale", "[1,1]", "--data.crop_ratio", "[1,1]", "--optim.lr", "2e-3"]
    return configure(rows.read("tableD"), row, SCALES["micro"], data=images, settings=[*given, *more])


def test_which_patches_are_not_seen() -> None:
    difficulty = torch.tensor([[0.1, 0.9, 0.3, 0.7]])
    noise = torch.tensor([[0.5, 0.2, 0.8, 0.1]])

    def dropped(keep: Keep) -> list[bool]:
        mask = unseen(keep, difficulty, noise, 0.5)
        assert mask is not None
        return mask[0].tolist()

    assert dropped("hardest") == [True, False, True, False]
    assert dropped("easiest") == [False, True, False, True]
    assert dropped("random") == [True, False, True, False]  # the highest noise
    assert unseen("all", difficulty, noise, 0.5) is None


def test_half_and_half_are_the_whole() -> None:
    torch.manual_seed(0)
    difficulty, noise = torch.rand(5, 64), torch.rand(5, 64)
    hard, easy = (unseen(keep, difficulty, noise, 0.5) for keep in ("hardest", "easiest"))
    assert hard is not None
    assert easy is not None
    assert torch.equal(hard, ~easy)


def brightness(run: RunConfig) -> HPM:
    """A stand-in for a trained predictor: what is bright is hard."""

    class Brightness(HPM):
        def predict_loss(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean(dim=1).unfold(1, 4, 4).unfold(2, 4, 4).mean(dim=(-1, -2)).flatten(1)

    model = initial_model(run)
    return Brightness(model.host, None)


@pytest.mark.parametrize("keep", ["hardest", "all"])
def test_what_tells_the_classes_apart_is_learnt_where_it_is_seen(images: str, keep: Keep, tmp_path: Path) -> None:
    run = settings(images, "--steps", "80")
    found = train_supervised(run, tmp_path, images, keep, brightness(run), Silent(), CPU)
    assert found["supervised"] > 0.95
    if keep == "all":
        assert found["supervised"] == found["whole"]


def test_it_cannot_be_learnt_where_it_is_not_seen(images: str, tmp_path: Path) -> None:
    # Which patches are bright decides which are dropped, so positions alone could tell; these see none of either place.
    run = settings(images, "--steps", "80", "--seed", "1")

    class Places(HPM):
        def predict_loss(self, images: torch.Tensor) -> torch.Tensor:
            return torch.arange(64.0).flip(0).expand(len(images), -1)  # the upper half is hard

    predictor = Places(initial_model(run).host, None)
    found = train_supervised(run, tmp_path, images, "easiest", predictor, Silent(), CPU)
    assert 0.2 < found["supervised"] < 0.8


class StopAt(Silent):
    """Kills a run in a step."""

    def __init__(self, step: int) -> None:
        self.left = step

    def advance(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def test_an_interrupted_run_ends_the_same(images: str, tmp_path: Path) -> None:
    run = settings(images, "--steps", "12", "--train.checkpoint_minutes", "0")

    def trainer(folder: str) -> Supervised:
        return Supervised(run, tmp_path / folder, images, "random", None, CPU)

    whole = trainer("whole")
    whole.fit(Silent())
    with pytest.raises(KeyboardInterrupt):
        trainer("killed").fit(StopAt(7))
    resumed = trainer("killed")
    assert resumed.step == 6
    resumed.fit(Silent())
    for (name, one), other in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert whole.accuracies() == resumed.accuracies()


def test_statistics_of_the_images(images: str, tmp_path: Path) -> None:
    run = settings(images, "--steps", "1")
    run = replace(run, data=replace(run.data, mean="computed", std="computed"))
    trainer = Supervised(run, tmp_path, images, "all", None, CPU)
    source = open_source(images)
    pixels: Any = np.stack([source.image(i, 3) for i in range(len(source))]) / 255
    assert trainer.plain.mean.tolist() == pytest.approx(pixels.mean(axis=(0, 1, 2)).tolist(), abs=1e-3)
