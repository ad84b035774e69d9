"""Run folders with changed bytes: a line, or the checkpoint before the damaged one, and the same weights in the end."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from hardpatch.cli import main
from hardpatch.pretrain.folder import configure
from hardpatch.pretrain.run import train
from hardpatch.train import checkpoint
from tests.end_to_end.conftest import SMALL, write_images
from tests.fuzz import EXAMPLES, fuzz_settings, mutated, outcome

LAST, FIRST = Path("checkpoints", "step_00000004"), Path("checkpoints", "step_00000002")
CHECKPOINT = ("model.safetensors", "training.safetensors", "manifest.json")
FILES = (*(LAST / name for name in CHECKPOINT), *map(Path, ("config.yaml", "metrics.jsonl", "result.json")))
FILES = (*FILES, Path("environment.json"))
fewer = settings(fuzz_settings, max_examples=max(8, EXAMPLES // 4))  # each reads a run, and may train for two steps


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pre-train for 4 steps, with checkpoints of steps 2 and 4."""
    folder = tmp_path_factory.mktemp("fuzz")
    images = write_images(folder / "images", each=4)
    command = ["pretrain", *SMALL, "--steps", "4", "--train.checkpoint_steps", "2", "--train.log_every", "1"]
    command += ["--batch_size", "4", "--verdict.checks", "0", "--data", str(images)]
    assert main([*command, "--out", str(folder / "run")]) == 0
    return folder / "run"


def resumed(run: Path) -> bool:
    """Resume a run, without the pictures at its end. Returns False if that was refused, as it is in one line."""
    return (
        outcome(lambda: train(*configure(None, None, None, run, [], resume=True), resume=True, pictures=False))
        is not None
    )


@fewer
@given(name=st.sampled_from(FILES), data=st.data())
def test_fuzz_files_of_a_run(original: Path, name: Path, data: st.DataObject) -> None:
    run = original.with_name("changed")
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(original, run)
    content = data.draw(mutated([(original / name).read_bytes()]))
    (run / name).write_bytes(content)
    if resumed(run):
        newest = checkpoint.newest_whole(run)
        assert newest == run / LAST
        assert (newest / "model.safetensors").read_bytes() == (original / LAST / "model.safetensors").read_bytes()
    else:
        assert name.name == "config.yaml"
    assert main(["info", str(run)]) in (0, 2)


@fewer
@given(name=st.sampled_from(CHECKPOINT[:2]), data=st.data())
def test_fuzz_checkpoints_without_a_manifest(original: Path, name: str, data: st.DataObject) -> None:
    run = original.with_name("earlier")
    shutil.rmtree(run, ignore_errors=True)
    shutil.copytree(original, run)
    for folder in (FIRST, LAST):
        (run / folder / "manifest.json").unlink()
    (run / LAST / name).write_bytes(data.draw(mutated([(original / LAST / name).read_bytes()])))
    if resumed(run):
        newest = checkpoint.newest_whole(run)
        assert newest is not None
        assert all(value.isfinite().all() for value in load_file(newest / "model.safetensors").values())
