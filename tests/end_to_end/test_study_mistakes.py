"""Plans of studies and mistakes in their arguments, through the command line."""

from collections.abc import Callable
from pathlib import Path

import pytest

from hardpatch.cli import main
from tests.end_to_end.conftest import write_images

MICRO = ("--scale", "micro", "--train.device", "cpu")


@pytest.fixture(scope="module")
def val(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write images to evaluate on, of the same two classes as ``images``."""
    return write_images(tmp_path_factory.mktemp("val") / "labeled", each=6)


def test_plan_by_hand(images: Path, val: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "study"
    options = ("--data", images, "--val", val, "--seeds", "2", "--epochs", "48", "--batch_size", "36")
    speed = ("--images_per_second", "2")
    assert main(["study", "plan", "table7", *MICRO, *map(str, options), *speed, "--segment_train", str(images),
                 "--segment_val", str(val), "--tokenizer", "t", "--out", str(out)]) == 0  # fmt: skip
    printed = capsys.readouterr().out.splitlines()
    assert not out.exists()
    assert printed[0] == "6 rows, 12 runs of 6 kinds; 30 images to train on"
    # 30 images, 48 epochs, 36 a step: 40 steps of 36; four times as long, twice; at 2 a second that is 1.6 hours.
    assert [line.split()[1:] for line in printed if line.startswith("hpm-length_4")] == [["2", "11,520", "2", "1.60"]]
    assert [line.split()[1:] for line in printed if line.startswith("mae-length_8")] == [["2", "23,040", "2", "3.20"]]
    # lengths 4, 8 and 4, of two encoders
    assert printed[-1].startswith("12 runs, 92,160 images: 12.80 hours, at the speed of --images_per_second")
    assert "12 trainings of segment_160k come on top" in printed[-1]
    assert "table7: SemMAE: not run, the paper's figure, cited; this method is not part of hardpatch" in printed


def test_plan_with_jobs_divides_the_time(
    images: Path, val: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--data", str(images), "--val", str(val), "--images_per_second", "10", "--jobs", "2"]
    assert main(["study", "plan", "table4", *MICRO, *options]) == 0
    # 3 runs of 20 steps of 32 images
    assert "3 runs, 1,920 images: 0.03 hours with --jobs 2" in capsys.readouterr().out


def test_a_plan_without_a_run_gives_the_reasons(images: Path, val: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", str(images), "--val", str(val), "--images_per_second", "10", "--measures", "segment"]
    assert main(["study", "plan", "table5", *MICRO, *options]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "6 rows, 0 runs of 0 kinds; 30 images to train on"
    assert sum(": not run, " in line for line in printed) == 6
    assert printed[-1].startswith("0 runs, 0 images: 0.00 hours")


def test_plan_measures_the_speed(images: Path, val: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--data", str(images), "--val", str(val), "--out", str(tmp_path / "study")]
    assert main(["study", "plan", "all", *MICRO, *options]) == 0
    printed = capsys.readouterr().out
    assert "?" not in printed.replace("images/s", "")
    assert "k-NN, linear probe and fine-tuning included" in printed
    assert not (tmp_path / "study").exists()


def test_an_interrupted_plan_ends_in_one_line(
    images: Path, val: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from hardpatch.study.stopwatch import Stopwatch

    def interrupted(self: Stopwatch, task: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(Stopwatch, "training_speed", interrupted)
    assert main(["study", "plan", "table4", *MICRO, "--data", str(images), "--val", str(val)]) == 130
    assert capsys.readouterr().out.splitlines()[-1].startswith("stopped before all runs were measured")


def test_mistakes_are_one_line(images: Path, val: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    out = tmp_path / "study"
    options = ("--data", images, "--val", val, "--steps", "2", "--measures", "knn")
    assert main(["study", "table4", *MICRO, "--out", str(out), *map(str, options)]) == 0
    line = fails("study", "table4", *MICRO, *options, "--out", out, "--optim.lr", "0.5")
    assert "--out: " in line
    assert "optim.lr was None, now 0.5" in line
    line = fails("study", "table4", *MICRO, "--data", images, "--val", images, "--steps", "2", "--out", out)
    assert f"has val {val}, now {images}" in line
    old = tmp_path / "old"
    old.mkdir()
    (old / "table.json").write_text("{}")
    assert "a study of an earlier version" in fails("study", "table4", *MICRO, *options, "--out", old)
    new = tmp_path / "new"
    assert "did you mean 'table3'" in fails("study", "tabel3", *MICRO, "--out", out)
    assert "--out: expected a folder" in fails("study", "table3", *MICRO)
    assert "--data and --val: scale tiny has no images of its own" in fails("study", "table3", "--out", new)
    assert "--val: " in fails("study", "table3", *MICRO, "--val", tmp_path / "none", "--out", new)
    assert "label" in fails("study", "table3", *MICRO, "--val", val / "class_0", "--out", new)
    assert "--optim.lrr" in fails("study", "table3", *MICRO, "--optim.lrr", "1", "--out", new)
    assert "--json: hardpatch study plan only prints" in fails("study", "plan", "table3", *MICRO, "--json", out)
    assert "--images_per_second" in fails("study", "table3", *MICRO, "--images_per_second", "5", "--out", out)
    assert "--measures: expected some of knn" in fails("study", "table3", *MICRO, "--measures", "ap", "--out", new)
    assert "--segment_val: expected it with" in fails("study", "table5", *MICRO, "--segment_train", val, "--out", new)
    missing = ("--segment_train", tmp_path / "none", "--segment_val", val)
    assert "--segment_train: expected a file or folder" in fails("study", "table5", *MICRO, *missing, "--out", new)
    assert not new.exists()
