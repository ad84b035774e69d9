"""Pre-training whose target is the features of a network that ``hardpatch finetune`` trained."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hardpatch.cli import main
from hardpatch.configuration.supervised_target import supervised_teacher
from hardpatch.finetune.file import load_classifier
from tests.end_to_end.conftest import SMALL


@pytest.fixture(scope="module")
def classifier(run: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fine-tune for two steps."""
    out = tmp_path_factory.mktemp("classifier") / "finetune"
    data = ("--train", str(images), "--val", str(images), "--out", str(out))
    options = ("--preset", "tiny", "--steps", "2", "--batch_size", "4", "--warmup_epochs", "0", "--workers", "0")
    assert main(["finetune", str(run), *data, *options]) == 0
    return out


def test_features_are_those_that_the_classifier_averages(classifier: Path) -> None:
    model = load_classifier(classifier).model
    teacher = supervised_teacher(str(classifier), model.encoder.grid, 3)
    height, width = (side * model.encoder.patch_size for side in model.encoder.grid)
    pixels = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
    with torch.no_grad():
        tokens = model.encoder(model.normalize(pixels))[:, 1:]
        expected = torch.nn.functional.layer_norm(
            tokens, tokens.shape[-1:], model.fc_norm.weight, model.fc_norm.bias, model.fc_norm.eps
        )
    assert torch.equal(teacher(pixels), expected)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not teacher.train().training


def test_pre_training_on_its_features(classifier: Path, images: Path, tmp_path: Path) -> None:
    target = ("--method.target", "frozen", "--method.frozen", "hardpatch", "--method.frozen_weights", str(classifier))
    out = tmp_path / "run"
    assert main(["pretrain", *SMALL, "--data", str(images), "--steps", "2", *target, "--out", str(out)]) == 0
    assert main(["info", str(out)]) == 0


def test_mistakes_are_one_line(
    classifier: Path, run: Path, images: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    target = ("--method.target", "frozen", "--method.frozen", "hardpatch")
    common = ("pretrain", *SMALL, "--data", images, "--steps", "2", *target, "--out", tmp_path / "run")
    assert "expected a run folder of hardpatch finetune" in fails(*common)
    assert f"got {run}" in fails(*common, "--method.frozen_weights", run)
    other = ("--method.frozen_weights", classifier, "--data.image_size", "64")
    assert "as the student has" in fails(*common, *other)
    assert not (tmp_path / "run").exists()
