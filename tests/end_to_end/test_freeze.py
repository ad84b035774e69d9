"""``--freeze`` of a segmenter and a detector: the first block keeps its bits, the second learns."""

from pathlib import Path
from types import ModuleType

import pytest
import torch

from hardpatch.cli import main
from hardpatch.interchange.backbone import load_backbone
from tests.end_to_end import test_detect, test_segment


@pytest.mark.parametrize("task", [test_segment, test_detect], ids=["segment", "detect"])
def test_the_first_block_keeps_its_bits(
    task: ModuleType, finetuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = finetuned / ("pairs" if task is test_segment else "coco")
    size = () if task is test_segment else ("--image_size", 48)
    options = ("--steps", 2, "--lr", 1e-2, "--freeze", 1, *size)
    assert main(task.command(finetuned / "run", data, tmp_path / "out", *options)) == 0
    said = capsys.readouterr().err
    assert "frozen: patch embedding, positions and the first block" in said
    assert (
        f"RUN: positions of 8 x 8 patches are interpolated to {'4 x 6' if task is test_segment else '12 x 12'}" in said
    )
    before, after = (load_backbone(run).encoder.state_dict() for run in (finetuned / "run", tmp_path / "out"))
    first = [name for name in before if name.startswith(("patch_embed.", "blocks.0."))]
    second = [name for name in before if name.startswith("blocks.1.")]
    assert len(first) > len(second) > 0
    assert all(torch.equal(before[name], after[name]) for name in first)
    assert not any(torch.equal(before[name], after[name]) for name in second)
