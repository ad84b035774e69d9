"""Frozen parts of an encoder keep their bits, and the rest learns."""

from pathlib import Path

import pytest
import torch

from hardpatch.errors import UserError
from hardpatch.train.freeze import freeze, trained_line
from tests.finetune.small import small_classifier
from tests.finetune.test_trainer import small_job


def frozen_names(names: list[str], what: int | str) -> set[str]:
    """Return the parameters that stay as they are, of a classifier of three blocks."""
    before = ("encoder.patch_embed.", "encoder.cls_token", "encoder.positions")
    blocks = tuple(f"encoder.blocks.{k}." for k in range(3 if what == "encoder" else int(what)))
    everything = ("encoder.",) if what == "encoder" else (*before, *blocks)
    return {name for name in names if name.startswith(everything)} if what else set()


@pytest.mark.parametrize("what", [0, 1, 2, 3, "encoder"])
def test_frozen_tensors_keep_their_bits(what: int | str, tmp_path: Path) -> None:
    job = small_job(tmp_path, freeze=what, lr=0.01, weight_decay=0.5, warmup_epochs=0.2)
    before = {name: value.detach().clone() for name, value in job.model.named_parameters()}
    batches = job.batches()
    for _ in range(4):
        job.train_step(next(batches))
    batches.close()
    unchanged = {name for name, value in job.model.named_parameters() if torch.equal(value, before[name])}
    assert unchanged == frozen_names(list(before), what)
    optimized = {id(value) for group in job.state.optimizer.param_groups for value in group["params"]}
    for name, value in job.model.named_parameters():
        assert (id(value) in optimized) == value.requires_grad == (name not in unchanged)
        assert (value.grad is None) or value.requires_grad


def test_a_shared_bias_is_trained_until_all_blocks_are_frozen() -> None:
    from hardpatch.models.encoder import Encoder

    encoder = Encoder(
        image_size=(16, 16), patch_size=4, width=32, depth=2, heads=2, positions="relative", drop_masked=False
    )
    assert encoder.relative_bias is not None
    freeze(encoder, 1)
    assert encoder.relative_bias.table.requires_grad
    freeze(encoder, 2)
    assert not encoder.relative_bias.table.requires_grad


def test_the_line_counts_parameters() -> None:
    model = small_classifier(3)
    whole = sum(value.numel() for value in model.parameters())
    (line,) = trained_line(model, freeze(model.encoder, "encoder"))
    assert line == f"--freeze: {2 * 32 + 3 * 32 + 3} of {whole:,} parameters are trained; frozen: the whole encoder"
    assert trained_line(model, "") == []


def test_more_blocks_than_there_are() -> None:
    with pytest.raises(UserError, match=r"--freeze: expected encoder, or a number of blocks from 0 to 3, got 99"):
        freeze(small_classifier(3).encoder, 99)
