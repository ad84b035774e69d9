"""Supervised training on half of the patches: the dropped half, the accuracy, and exact resume."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hardpatch.configuration import config
from hardpatch.configuration.build import initial_model
from hardpatch.configuration.sections import RunConfig
from hardpatch.data.sources import open_source
from hardpatch.errors import UserError
from hardpatch.finetune.objective import ClassObjective
from hardpatch.finetune.settings import PRESETS, SCRATCH, FinetuneSettings
from hardpatch.methods.hpm import HPM
from hardpatch.pretrain import recipes
from hardpatch.study.rows import Keep
from hardpatch.study.table_d import TableDResult, dropped_patches, supervised_job, train_supervised
from hardpatch.train import checkpoint
from hardpatch.train.progress import Silent
from hardpatch.train.settings import changed

RECIPE = changed(PRESETS["paper"], SCRATCH)
"""The paper's: its fine-tuning settings, from random weights."""


def write_classes(folder: Path, seed: int) -> str:
    """Write two classes that differ in the place of a bright patch of 8 x 8 pixels; all else is dark noise."""
    rng = np.random.default_rng(seed)
    for label in range(2):
        (folder / str(label)).mkdir()
        for number in range(24):
            pixels = rng.integers(0, 60, (32, 32, 3), dtype=np.uint8)
            pixels[8:16, 4 + 16 * label : 12 + 16 * label] = 250
            Image.fromarray(pixels).save(folder / str(label) / f"{number}.png")
    return str(folder)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_classes(tmp_path_factory.mktemp("labeled"), 0)


@pytest.fixture(scope="module")
def val(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_classes(tmp_path_factory.mktemp("val"), 1)


@pytest.fixture(scope="module")
def run() -> RunConfig:
    """Return the settings of a small encoder for images of 32 x 32 pixels in patches of 4."""
    sizes = ["--model.width=32", "--model.depth=2", "--model.heads=2", "--model.decoder_width=16"]
    return config.build(recipes.read("demo"), [*sizes, "--data.image_size=32", "--model.patch_size=4"])


def plain(**more: Any) -> FinetuneSettings:
    """Return settings without augmentation, to learn a few images quickly."""
    off = {"crop_scale": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "flip": 0.0, "randaugment": 0.0, "erase": 0.0}
    off |= {"mixup": 0.0, "cutmix": 0.0, "smoothing": 0.0, "drop_path": 0.0, "layer_decay": 1.0}
    common = {"steps": 80, "batch_size": 32, "lr": 2e-3, "warmup_epochs": 5.0, "val_every": None, "workers": 0}
    return changed(RECIPE, {**off, **common, "device": "cpu", **more})


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
def test_classes_are_learned_if_the_patches_that_differ_are_seen(
    run: RunConfig, images: str, val: str, keep: Keep, tmp_path: Path
) -> None:
    accuracies, signal = train_supervised(run, plain(), tmp_path, images, val, keep, brightness(run), Silent())
    assert signal == 0
    assert accuracies["supervised"] > 0.95
    if keep == "all":
        assert accuracies["supervised"] == accuracies["whole"]


def test_classes_are_not_learned_if_the_patches_that_differ_are_dropped(
    run: RunConfig, images: str, val: str, tmp_path: Path
) -> None:
    # If brightness chose the dropped patches, the positions of the others would give the class away. Here the upper
    # half, in which the bright patches are, is always dropped.
    class UpperHalf(HPM):
        def predict_loss(self, images: torch.Tensor) -> torch.Tensor:
            return torch.arange(64.0).flip(0).expand(len(images), -1)

    predictor = UpperHalf(initial_model(run).host, None)
    settings = plain(seed=1)
    accuracies, _ = train_supervised(run, settings, tmp_path, images, val, "easiest", predictor, Silent())
    assert 0.2 < accuracies["supervised"] < 0.8


class StopAt(Silent):
    """Kill a run after a number of steps."""

    def __init__(self, step: int) -> None:
        self.left = step

    def advance(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def test_an_interrupted_run_of_the_whole_recipe_ends_the_same(run: RunConfig, images: str, tmp_path: Path) -> None:
    short = {"steps": 12, "batch_size": 8, "warmup_epochs": 0.1, "checkpoint_minutes": 0.0, "val_every": None}
    settings = changed(RECIPE, {**short, "workers": 0, "device": "cpu"})

    def train(folder: str, progress: Silent) -> TableDResult:
        predictor = brightness(run)
        return train_supervised(run, settings, tmp_path / folder, images, images, "hardest", predictor, progress)

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


def test_statistics_of_the_images(run: RunConfig, images: str, tmp_path: Path) -> None:
    run = replace(run, data=replace(run.data, mean="computed", std="computed"))
    job = supervised_job(run, plain(), tmp_path, images, images, "all", None)
    source = open_source(images)
    pixels: Any = np.stack([source.image(i) for i in range(len(source))]) / 255
    assert job.model.mean.tolist() == pytest.approx(pixels.mean(axis=(0, 1, 2)).tolist(), abs=1e-3)


def test_training_is_the_recipe_of_fine_tuning(run: RunConfig, images: str, tmp_path: Path) -> None:
    job = supervised_job(run, changed(RECIPE, {"device": "cpu"}), tmp_path, images, images, "random", None)
    assert job.total == round(100 * 48 / 1024)
    assert job.run.peak_lr == pytest.approx(2e-3)
    scales = sorted({group["lr_scale"] for group in job.state.optimizer.param_groups})
    assert scales == pytest.approx([0.8**3, 0.8**2, 0.8, 1.0])  # two blocks, below and above
    assert isinstance(job.objective, ClassObjective)
    assert (job.objective.mixer.smoothing, job.objective.mixer._mix is None) == (0.1, False)
    initial = initial_model(run).host.encoder.state_dict()
    state = job.model.encoder.state_dict()
    assert all(torch.equal(state[name], value) for name, value in initial.items() if name in state)


def test_patches_are_chosen_in_the_mixed_image(run: RunConfig, images: str, tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []

    class Recorder(HPM):
        def predict_loss(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images)
            return torch.rand(len(images), 64)

    other = replace(run, data=replace(run.data, mean=[0.1, 0.2, 0.3], std=[0.5, 0.4, 0.3]))
    predictor = Recorder(initial_model(run).host, None, mean=other.data.mean, std=other.data.std)  # type: ignore[arg-type]
    settings = plain(batch_size=8, cutmix=1.0, erase=1.0)
    job = supervised_job(run, settings, tmp_path, images, images, "easiest", predictor)
    shown: list[tuple[torch.Tensor, torch.Tensor]] = []
    job.model.register_forward_pre_hook(lambda _, inputs: shown.append(inputs))
    batches = job.batches()
    job.train_step(next(batches))
    batches.close()
    (mixed, mask), (judged,) = shown[0], seen
    pixels = mixed * job.model.std.view(-1, 1, 1) + job.model.mean.view(-1, 1, 1)
    torch.testing.assert_close(judged, (pixels - predictor.mean.view(-1, 1, 1)) / predictor.std.view(-1, 1, 1))
    assert mask.sum(dim=1).tolist() == [32] * 8


def test_a_predictor_must_fit(run: RunConfig, images: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="predictor: expected a model of losses of 8 x 8 patches, got none"):
        supervised_job(run, plain(), tmp_path, images, images, "hardest", None)
    coarse = config.build(config.to_dict(run), ["--model.patch_size=8"])
    with pytest.raises(UserError, match="got one of 4 x 4 patches"):
        supervised_job(run, plain(), tmp_path, images, images, "hardest", initial_model(coarse))
