"""Several processes train what one process trains: same losses, same masks, every image once an epoch."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from hardpatch.cli import main
from hardpatch.train.launch import NO_ANSWER, launch
from hardpatch.train.metrics import read_metrics
from hardpatch.train.progress import Silent
from tests.distributed_runs import pretrain_all, seen
from tests.end_to_end.conftest import SMALL

STEPS = 20
COMMON = [
    *("--data.image_size=32", "--model.patch_size=8", "--model.width=32", "--model.depth=2", "--model.heads=2"),
    *("--model.decoder_width=16", "--model.decoder_depth=1", "--model.decoder_heads=2", "--data.workers=0"),
    *("--batch_size=16", f"--steps={STEPS}", "--train.log_every=1", "--verdict.checks=0", "--train.device=cpu"),
    *("--optim.lr=1e-3", "--method.alpha_start=0.3"),
]


@pytest.fixture(scope="module")
def runs(images: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    tokens = tmp_path_factory.mktemp("tokens") / "tokenizer"
    sizes = ["--image_size", "16", "--patch_size", "4", "--vocabulary", "16", "--width", "8", "--workers", "0"]
    assert main(["tokenizer", "--data", str(images), "--steps", "3", *sizes, "--out", str(tokens)]) == 0
    common = [*COMMON, f"--data.path={images}"]
    beit = ["--method.host=beit", f"--method.tokenizer={tokens}", "--method.mask=block", "--model.drop_path=0.2"]
    ibot = ["--method.host=ibot", "--method.mask_ratio=0.3", "--method.mask_ratio_spread=0.15", "--model.drop_path=0.2"]
    ibot += ["--ibot.outputs=32", "--ibot.head_hidden=32", "--ibot.head_bottleneck=16", "--model.positions=learned"]
    measured = [f"--knn.train={images}", f"--knn.val={images}", "--knn.every_epochs=5", "--verdict.checks=1"]
    measured += ["--verdict.images=4"]
    fast = ["--fast.prediction_ratio=0.667", "--fast.shared_blocks=-1", "--fast.remember=true"]
    return {
        "hpm": [*common, *measured, "--data.crops=2", "--model.drop_path=0.2", "--optim.clip=0.5"],
        "mae": [*common, "--method.predicting_loss=none", "--optim.accumulation_steps=2"],
        "fast": [*common, *fast, "--model.decoder_depth=2"],  # remembers the difficulty over ten epochs
        "beit": [*common, *beit, "--method.mask_ratio=0.4"],
        "ibot": [*common, *ibot, "--ibot.local_crops=2", "--ibot.local_size=16"],
    }


@pytest.fixture(scope="module")
def alone(runs: Mapping[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    pretrain_all(runs, folder, "ddp", progress=Silent())
    return folder


@pytest.mark.parametrize(("processes", "strategy"), [(2, "ddp"), (4, "ddp"), (2, "fsdp2")])
def test_losses_masks_and_images_are_those_of_one_process(
    processes: int, strategy: str, runs: dict[str, list[str]], alone: Path, tmp_path: Path
) -> None:
    runs = runs if processes == 2 else {name: runs[name] for name in ("hpm", "ibot")}
    launch(pretrain_all, runs, tmp_path, strategy, progress=Silent(), devices=processes)
    for name in runs:
        expected, rows = (read_metrics(folder / name / "metrics.jsonl") for folder in (alone, tmp_path))
        assert [row["step"] for row in rows] == [row["step"] for row in expected]
        assert [row["step"] for row in rows if row["step"]] == list(range(1, STEPS + 1))
        for one, other in zip(expected, rows, strict=True):
            compared = ("gradient_norm", "alpha", "knn_top1", "check_rankme")
            losses = {key: value for key, value in one.items() if "loss" in key or key in compared}
            assert {key: other[key] for key in losses} == pytest.approx(losses, rel=1e-5), (name, one["step"])
        indices, masks = seen(tmp_path / name)
        expected_indices, expected_masks = seen(alone / name)
        assert np.array_equal(np.sort(indices), np.sort(expected_indices)), name
        if name != "hpm":  # of which a step has two crops of 8 images
            assert set(np.bincount(indices.ravel(), minlength=30)) <= {10, 11}  # 20 * 16 images are 10.7 epochs of 30
        if name == "mae":  # the mask of the last micro-batch is recorded
            assert masks.shape == (STEPS, 8, 16)
            continue
        order, expected_order = (np.argsort(part, axis=1, kind="stable") for part in (indices, expected_indices))
        if name != "ibot":  # whose masks belong to crops in another order
            in_order = np.take_along_axis(masks, order[:, :, None], 1)
            assert np.array_equal(in_order, np.take_along_axis(expected_masks, expected_order[:, :, None], 1)), name
            continue
        for step in range(STEPS):  # the same masks, whatever their order
            assert sorted(map(tuple, masks[step])) == sorted(map(tuple, expected_masks[step]))


def command(images: Path, out: Path, *more: str) -> list[str]:
    options = [*SMALL, "--train.checkpoint_steps", "5", "--train.log_every", "1", "--verdict.checks", "0"]
    return ["pretrain", *options, "--data", str(images), "--steps", "40", "--out", str(out), *more]


def test_a_run_changes_the_number_of_its_processes(images: Path, tmp_path: Path) -> None:
    assert main(command(images, tmp_path / "one")) == 0
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    start = [sys.executable, "-m", "hardpatch", *command(images, tmp_path / "two", "--devices", "2")]
    process = subprocess.Popen(start, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not any(row["step"] >= 12 for row in read_metrics(tmp_path / "two" / "metrics.jsonl")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)  # to the first process alone
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "nothing is lost" in out
    assert main(["pretrain", "--resume", "--devices", "1", "--out", str(tmp_path / "two")]) == 0
    one, two = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [row["step"] for row in two] == [row["step"] for row in one]
    assert [row["loss"] for row in two] == pytest.approx([row["loss"] for row in one], rel=1e-5)


def test_a_process_that_is_killed_ends_the_run_with_the_reason(images: Path, tmp_path: Path) -> None:
    start = [
        sys.executable,
        "-m",
        "hardpatch",
        *command(images, tmp_path / "run", "--devices", "2", "--steps", "100000"),
    ]
    process = subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not any(row["step"] >= 6 for row in read_metrics(tmp_path / "run" / "metrics.jsonl")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    other = subprocess.run(["pgrep", "-P", str(process.pid), "-f", "spawn_main"], capture_output=True, text=True)
    os.kill(int(other.stdout.split()[-1]), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.splitlines()[-1] == (
        "hardpatch pretrain: process 1 of 2 was killed by signal 9, perhaps because the memory was full; go on from "
        "the last checkpoint with --resume"
    )
    assert (tmp_path / "run" / "checkpoints" / "step_00000005").is_dir()


FORKED = """
import multiprocessing, sys
fork = multiprocessing.get_context("fork")
multiprocessing.get_context = lambda method=None: fork  # the second process need not import for seconds
from hardpatch.cli import main
sys.exit(main())
"""


def start_two(images: Path, run: Path, *more: str) -> tuple["subprocess.Popen[str]", int]:
    """Start a run in two processes, wait for its sixth step, and return it and the id of the second process."""
    start = [sys.executable, "-c", FORKED, *command(images, run, "--devices", "2", "--steps", "100000", *more)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(start, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not any(row["step"] >= 6 for row in read_metrics(run / "metrics.jsonl")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    (other,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return process, int(other)


def test_a_process_that_hangs_ends_the_run_with_the_reason(images: Path, tmp_path: Path) -> None:
    process, other = start_two(images, tmp_path / "run", "--train.answer_minutes", "0.1")
    os.kill(other, signal.SIGSTOP)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert errors.splitlines()[-1] == f"hardpatch pretrain: {NO_ANSWER}"
    assert "Traceback" not in errors
    assert not Path(f"/proc/{other}").exists()
    assert (tmp_path / "run" / "checkpoints" / "step_00000005").is_dir()


def test_no_process_outlives_a_first_one_that_is_killed(images: Path, tmp_path: Path) -> None:
    process, other = start_two(images, tmp_path / "run")
    os.kill(other, signal.SIGSTOP)  # as if it computed or waited
    process.kill()
    process.wait(timeout=60)
    os.kill(other, signal.SIGCONT)
    process.communicate(timeout=60)  # until the second process, which has the same output, has ended, too
