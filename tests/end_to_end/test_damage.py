"""Every training resumes from the newest checkpoint that is whole; every reader passes over damaged ones."""

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import hardpatch
from hardpatch.cli import main
from hardpatch.errors import UserError
from hardpatch.train import checkpoint
from hardpatch.train.checkpoint import NONE_YET
from tests.end_to_end import test_jobs as known
from tests.end_to_end.conftest import SMALL
from tests.end_to_end.test_jobs import NAMES, Job, assert_same_checkpoint, newest

data, encoder, jobs = known.data, known.encoder, known.jobs  # fixtures


def truncate(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_checkpoint_is_passed_over_and_set_aside(
    name: str, jobs: dict[str, Job], data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job, run = jobs[name], tmp_path / "run"
    job(run, data)
    whole = tmp_path / "whole"
    shutil.copytree(run, whole)
    assert [path.name for path in checkpoint.checkpoints(run / "checkpoints")] == ["step_00000004", "step_00000006"]
    truncate(newest(run) / checkpoint.TRAINING)
    logging.getLogger("hardpatch").propagate = True
    job(run, data, resume=True)
    assert "step_00000006 is damaged (training.safetensors has" in caplog.text
    assert_same_checkpoint(newest(run), newest(whole))
    for folder in (run / "checkpoints").iterdir():
        (folder / checkpoint.WEIGHTS).write_bytes(b"")
    before = (run / "metrics.jsonl").read_text()
    with pytest.raises(UserError, match=r"step_00000004 is damaged .* restore one from a copy, or .* another --out"):
        job(run, data, resume=True)
    assert (run / "metrics.jsonl").read_text() == before


def test_a_run_whose_checkpoints_are_gone_says_so(jobs: dict[str, Job], data: Path, tmp_path: Path) -> None:
    job, run = jobs["finetune"], tmp_path / "run"
    job(run, data)
    before = (run / "metrics.jsonl").read_text()
    for saved in (run / "checkpoints").iterdir():
        shutil.rmtree(saved)
    with pytest.raises(
        UserError, match=r"the checkpoints of .*run are gone, and it had some; its metrics go up to step 6"
    ):
        job(run, data, resume=True)
    (run / "checkpoints").rmdir()
    with pytest.raises(UserError, match="are gone"):
        job(run, data, resume=True)
    assert (run / "metrics.jsonl").read_text() == before


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_anew(
    jobs: dict[str, Job], data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job, run = jobs["finetune"], tmp_path / "run"
    job(run, data)
    for saved in (run / "checkpoints").iterdir():
        shutil.rmtree(saved)
    (run / "checkpoints" / NONE_YET).touch()  # as in a folder without a checkpoint
    logging.getLogger("hardpatch").propagate = True
    job(run, data, resume=True)
    assert "has no checkpoint yet, although metrics.jsonl goes up to step 6: the training starts" in caplog.text
    assert [path.name for path in (run / "checkpoints").iterdir() if path.name == NONE_YET] == []
    assert newest(run).name == "step_00000006"


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("pretrain", "table_d")])
def test_a_changed_config_is_refused_by_name(name: str, jobs: dict[str, Job], data: Path, tmp_path: Path) -> None:
    job, run = jobs[name], tmp_path / "run"
    job(run, data)
    config = run / "config.yaml"
    values = yaml.safe_load(config.read_text())
    config.write_text(yaml.safe_dump(values | {"clip": 0.25}))
    verb = "linear --protocol paper" if name == "linear" else name
    with pytest.raises(UserError, match=r"have other settings: clip was .*, now 0\.25; restore config\.yaml"):
        _resume(verb, run)


def _resume(verb: str, run: Path) -> None:
    calls: dict[str, Callable[..., object]] = {
        "finetune": hardpatch.finetune,
        "linear --protocol paper": hardpatch.train_linear_probe,
        "segment": hardpatch.segment,
        "detect": hardpatch.detect,
        "tokenizer": hardpatch.train_tokenizer,
    }
    calls[verb](out=run, resume=True)


def test_a_changed_config_of_a_pretraining_is_refused_by_name(
    run: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("seed: 0", "seed: 7"))
    assert "was made with other settings: seed was 0, now 7; take those" in fails(
        "pretrain", "--resume", "--out", folder
    )


def test_readers_pass_over_a_damaged_checkpoint(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fails: Callable[..., str]
) -> None:
    run = tmp_path / "run"
    settings = [*SMALL, "--data", str(images), "--steps", "4", "--train.checkpoint_steps", "2", "--verdict.checks", "0"]
    assert main(["pretrain", *settings, "--out", str(run)]) == 0
    truncate(newest(run) / checkpoint.WEIGHTS)
    for command in (["info"], ["knn", "--train", str(images), "--val", str(images), "--workers", "0"]):
        capsys.readouterr()
        assert main([command[0], str(run), *command[1:]]) == 0
        out, err = capsys.readouterr()
        assert "step_00000002" in out or "(step 2 of 4, " in out, err
    assert main(["export", str(run), "--to", "timm", "--out", str(tmp_path / "vit.safetensors")]) == 0
    line = fails("info", newest(run))
    assert "step_00000004/model.safetensors is damaged (model.safetensors has" in line
    truncate(run / "checkpoints" / "step_00000002" / checkpoint.WEIGHTS)
    assert fails("info", run).endswith("restore one from a copy, or start a new run with another --out")


def test_checkpoints_that_are_kept(images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = [*SMALL, "--data", str(images), "--steps", "7", "--train.checkpoint_steps", "1", "--verdict.checks", "0"]
    settings += ["--train.keep_every", "3", "--train.keep_checkpoints", "1"]
    assert main(["pretrain", *settings, "--out", str(run)]) == 0
    kept = [3, 6, 7]
    assert [path.name for path in sorted((run / "checkpoints").iterdir())] == [f"step_{step:08d}" for step in kept]
    assert json.loads((run / "checkpoints" / "step_00000003" / "manifest.json").read_text())["step"] == 3
