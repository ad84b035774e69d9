"""A resumed run keeps its settings and the command that made it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hardpatch.cli import main
from tests.end_to_end.conftest import PICTURES, SMALL, write_images


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    """Finished run of 12 steps that a test may change."""
    return shutil.copytree(run, tmp_path / "copy")


def test_a_recipe_beside_resume_must_be_that_of_the_run(
    copy: Path, images: Path, fails: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    resume = ["--resume", "--out", str(copy)]
    line = fails("pretrain", "--recipe", "cifar10_tiny", "--data", images, *resume)
    assert "made with other settings" in line
    assert "batch_size was 16, now" in line
    assert main(["pretrain", *SMALL, "--data", str(images), "--steps", "12", *resume]) == 0
    assert "12 steps done" in capsys.readouterr().out


def test_a_recipe_beside_resume_does_not_reset_what_a_run_may_change(copy: Path, images: Path) -> None:
    before = (copy / "config.yaml").read_text()
    assert "log_every: 5" in before  # of the command line; the recipe has another
    command = [word for word in (*SMALL, *PICTURES) if word not in ("--train.log_every", "5")]
    assert main(["pretrain", *command, "--data", str(images), "--steps", "12", "--resume", "--out", str(copy)]) == 0
    assert (copy / "config.yaml").read_text() == before


def test_a_preset_beside_resume_must_be_that_of_the_run(
    run: Path, images: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    data = ["--train", str(images), "--val", str(images)]
    settings = ["--steps", "1", "--batch_size", "10", "--workers", "0", "--device", "cpu", "--preset", "tiny"]
    settings += ["--warmup_epochs", "0"]
    command = ["finetune", str(run), *data, *settings, "--out", str(tmp_path / "out")]
    assert main(command) == 0
    line = fails("finetune", "--resume", "--preset", "small", "--out", tmp_path / "out")
    assert "made with other settings" in line
    assert "base_lr was 0.002, now 0.001" in line
    assert main([*command, "--resume"]) == 0
    assert main(["finetune", "--resume", "--out", str(tmp_path / "out")]) == 0


def test_the_first_command_stays(copy: Path) -> None:
    before = json.loads((copy / "environment.json").read_text())
    first = before["command"]
    resume = ["pretrain", "--resume", "--out", str(copy)]
    for _ in range(2):
        assert main(resume) == 0
    environment = json.loads((copy / "environment.json").read_text())
    assert environment["command"] == first
    assert environment["resumed_by"] == [*before["resumed_by"], " ".join(["hardpatch", *resume])]
    assert f"Made by `{first}`" in (copy / "README.md").read_text()
    assert (copy / "config.yaml").read_text().splitlines()[0].endswith(f": {first}")


def test_undecodable_images_of_earlier_calls_are_counted(tmp_path: Path) -> None:
    folder, out = write_images(tmp_path / "images", classes=1, each=8), tmp_path / "run"
    for name in ("0", "1"):
        path = folder / "class_0" / f"{name}.jpg"
        path.write_bytes(path.read_bytes()[:300])
    arguments = ["--data", str(folder), "--steps", "4", "--train.checkpoint_steps", "2"]
    arguments += ["--data.max_bad_fraction", "0.3", "--out", str(out)]
    assert main(["pretrain", *SMALL, *arguments]) == 0
    listed = (out / "undecodable.txt").read_text().splitlines()
    assert len(listed) == 2
    assert all(".jpg" in line for line in listed)
    shutil.rmtree(out / "checkpoints" / "step_00000004")  # as if it had been killed after the second step
    (folder / "class_0" / "2.jpg").write_bytes(path.read_bytes())
    assert main(["pretrain", "--resume", "--data.max_bad_fraction", "0.5", "--out", str(out)]) == 0
    assert json.loads((out / "result.json").read_text())["left_out"]["undecodable"] == 3
    # A finished run that is called again sees no image and still knows them.
    assert main(["pretrain", "--resume", "--out", str(out)]) == 0
    assert json.loads((out / "result.json").read_text())["left_out"]["undecodable"] == 3
