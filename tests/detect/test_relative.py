"""Decomposed relative positions, trained positions, and the presets of detection against their papers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from hardpatch.detect.annotations import AnnotationSet
from hardpatch.detect.model import mask_rcnn
from hardpatch.detect.relative import DecomposedPositions, attend
from hardpatch.detect.run import detect
from hardpatch.detect.settings import BEFORE, PRESETS, DetectSettings, check
from hardpatch.detect.trainer import build, groups
from hardpatch.detect.vitdet import ViTDet, global_block_indices
from hardpatch.errors import UserError
from hardpatch.interchange.backbone import Backbone
from hardpatch.models.block import Attention, Block
from hardpatch.models.encoder import Encoder
from hardpatch.train import checkpoint
from hardpatch.train.loop import fit
from hardpatch.train.progress import Silent
from hardpatch.train.settings import changed, to_dict
from tests.detect.small import small_encoder
from tests.detect.test_trainer import Interruption, tiny_job

ADDED: dict[str, Any] = {"relative_positions": True, "train_positions": True, "sampling_ratio": 0}


def positions_of(encoder: Encoder) -> list[DecomposedPositions]:
    parts = [block.attn.get_submodule("positions") for block in encoder.blocks if isinstance(block, Block)]
    return [part for part in parts if isinstance(part, DecomposedPositions)]


@torch.no_grad()
def test_attention_equals_a_loop_over_pairs() -> None:
    torch.manual_seed(0)
    grid, heads, width = (2, 3), 2, 4
    attention, positions = Attention(heads * width, heads), DecomposedPositions(grid, width)
    nn.init.normal_(positions.rows)
    nn.init.normal_(positions.columns)
    attention.add_module("positions", positions)
    x, extra = torch.randn(1, 6, heads * width), torch.randn(1, 1, 6, 6)
    q, k, v = (part[0].unflatten(-1, (heads, width)) for part in attention.qkv(x).chunk(3, dim=-1))
    slow = torch.empty(6, heads, width)
    for head in range(heads):
        for query in range(6):
            scores = torch.empty(6)
            for key in range(6):
                row, column = query // 3 - key // 3, query % 3 - key % 3
                place = positions.rows[row + 1] + positions.columns[column + 2]
                scores[key] = q[query, head] @ k[key, head] / width**0.5 + q[query, head] @ place
            slow[query, head] = (scores + extra[0, 0, query]).softmax(dim=0) @ v[:, head]
    assert_close(attend(attention, x, grid, extra)[0], attention.proj(slow.flatten(1)), rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("side", [4, 7])
def test_attention_equals_that_of_transformers(side: int) -> None:
    """Segment Anything has ViTDet's attention; for a side of 7 the vectors are interpolated."""
    sam = pytest.importorskip("transformers.models.sam.modeling_sam")
    config = pytest.importorskip("transformers").SamVisionConfig(hidden_size=24, num_attention_heads=3)
    torch.manual_seed(0)
    theirs = sam.SamVisionAttention(config, window_size=4).eval()
    nn.init.normal_(theirs.rel_pos_h)
    nn.init.normal_(theirs.rel_pos_w)
    ours, positions = Attention(24, 3), DecomposedPositions((4, 4), 8)
    positions.load_state_dict({"rows": theirs.rel_pos_h, "columns": theirs.rel_pos_w})
    ours.load_state_dict({name: value for name, value in theirs.state_dict().items() if "rel_pos" not in name})
    ours.add_module("positions", positions)
    x = torch.randn(2, side, side, 24)
    result = attend(ours, x.flatten(1, 2), (side, side), None)
    assert_close(result, theirs(x)[0].flatten(1, 2), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_vectors_are_interpolated_for_other_grids() -> None:
    positions = DecomposedPositions((2, 2), 1)
    positions.rows.copy_(torch.tensor([[1.0], [2.0], [3.0]]))  # for -1, 0 and 1 rows
    bias = positions(torch.ones(1, 1, 3, 1), (3, 1))
    # three entries to five, linear in between and constant beyond the outer ones
    entries = [1.0, 1.4, 2.0, 2.6, 3.0]
    assert_close(bias[0, 0], torch.tensor([[entries[q - k + 2] for k in range(3)] for q in range(3)]))


@torch.no_grad()
@pytest.mark.parametrize(("window", "global_blocks"), [(3, 2), (2, 0), (8, 4)])
def test_they_change_no_bit_at_first(window: int, global_blocks: int) -> None:
    images = torch.randn(2, 3, 16, 24)
    options: dict[str, Any] = {"window": window, "global_blocks": global_blocks}
    plain = ViTDet(small_encoder(), **options).features(images)
    with_positions = ViTDet(small_encoder(), **options, relative_grid=(4, 6)).features(images)
    assert torch.equal(with_positions, plain)


def test_each_block_has_the_size_that_it_sees() -> None:
    model = ViTDet(small_encoder(), window=3, global_blocks=2, relative_grid=(4, 6))
    sizes = [(len(part.rows), len(part.columns)) for part in positions_of(model.encoder)]
    assert model.global_indices == global_block_indices(4, 2) == (1, 3)
    assert sizes == [(5, 5), (7, 11), (5, 5), (7, 11)]
    assert all(part.rows.shape[1] == 16 for part in positions_of(model.encoder))


def test_an_encoder_with_a_bias_keeps_it() -> None:
    model = ViTDet(small_encoder(positions="relative", drop_masked=False), window=3, relative_grid=(4, 6))
    assert not any("attn.positions" in name for name, _ in model.named_parameters())


def test_gradients_reach_the_additions() -> None:
    backbone = Backbone(small_encoder(), (0.5,) * 3, (0.25,) * 3)
    settings = changed(PRESETS["small"], {"image_size": 32, "channels": 8, "window": 3, "global_blocks": 2, **ADDED})
    model: Any = build(backbone, settings, 1)
    maps: dict[str, Tensor] = model.backbone.train()(torch.randn(2, 3, 32, 32))
    sum(level.square().sum() for level in maps.values()).backward()  # type: ignore[union-attr]
    new = [name for name, _ in model.named_parameters() if "positions" in name]
    assert new == ["backbone.encoder.positions"] + [
        f"backbone.encoder.blocks.{block}.attn.positions.{axis}" for block in range(4) for axis in ("rows", "columns")
    ]
    for name in new:
        gradient = model.get_parameter(name).grad
        assert gradient is not None, name
        assert gradient.abs().sum() > 0, name


def test_additions_learn_at_the_rate_of_their_layer() -> None:
    settings = changed(DetectSettings(), {"image_size": 64, "channels": 8, "head_width": 8, "global_blocks": 2})
    model = build(Backbone(small_encoder(), (0.5,) * 3, (0.25,) * 3), settings, classes=2)
    names = {parameter: name for name, parameter in model.named_parameters()}
    group_of = {names[p]: group for group in groups(model, settings) for p in group["params"]}
    assert group_of.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    absolute = group_of["backbone.encoder.positions"]
    assert (absolute["lr_scale"], absolute["weight_decay"]) == (pytest.approx(0.7**5), 0.0)
    for block in range(4):
        group = group_of[f"backbone.encoder.blocks.{block}.attn.positions.rows"]
        assert (group["lr_scale"], group["weight_decay"]) == (pytest.approx(0.7 ** (4 - block)), 0.1)


def test_the_presets_have_the_papers_numbers() -> None:
    """HPM's supplement A.2; ViTDet's Appendix A.2 and detectron2's mask_rcnn_vitdet_b_100ep."""
    hpm, vitdet = PRESETS["hpm"], PRESETS["vitdet"]
    assert (hpm.epochs, hpm.batch_size, hpm.image_size) == (12, 16, 1024)
    assert (vitdet.epochs, vitdet.batch_size, vitdet.image_size) == (100, 64, 1024)
    assert changed(hpm, {"epochs": 100.0, "batch_size": 64}) == vitdet
    assert (vitdet.lr, vitdet.weight_decay, vitdet.layer_decay, vitdet.drop_path) == (1e-4, 0.1, 0.7, 0.1)
    assert (vitdet.sampling_ratio, vitdet.train_positions, vitdet.relative_positions) == (0, True, True)
    for run in (hpm, vitdet):
        check(run)
    # a run of an earlier version resumes from small, which stands for what its folder does not say
    small = to_dict(PRESETS["small"])
    assert {name: small[name] for name in BEFORE} == BEFORE
    with pytest.raises(UserError, match="--sampling_ratio: expected a whole number from 0 to 64, got -1"):
        check(changed(hpm, {"sampling_ratio": -1}))


def test_the_old_preset_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        detect("run", out=tmp_path / "out", preset="paper")
    assert str(error.value).startswith("--preset: paper could mean two papers: take hpm (12 epochs, batch 16)")
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_the_sampling_ratio_reaches_both_heads() -> None:
    for ratio in (0, 2):
        heads = mask_rcnn(
            small_encoder(), (0.5,) * 3, (0.2,) * 3, classes=1, image_size=64, channels=8, sampling_ratio=ratio
        ).roi_heads
        assert heads.box_roi_pool.sampling_ratio == heads.mask_roi_pool.sampling_ratio == ratio


def test_an_interrupted_run_resumes_to_the_same_bits(rectangles: tuple[AnnotationSet, Path], tmp_path: Path) -> None:
    whole = tiny_job(rectangles, tmp_path / "whole", **ADDED)
    start = {name: value.clone() for name, value in whole.model.state_dict().items()}
    assert fit(whole, Silent()) == 0
    fit(tiny_job(rectangles, tmp_path / "parts", **ADDED), Interruption(2))
    resumed = tiny_job(rectangles, tmp_path / "parts", **ADDED)
    saved = checkpoint.newest(tmp_path / "parts")
    assert saved is not None
    resumed.restore(saved)
    assert (resumed.step, fit(resumed, Silent())) == (2, 0)
    after = whole.model.state_dict()
    assert_close(resumed.model.state_dict(), after, rtol=0, atol=0)
    for name in ("positions", "blocks.0.attn.positions.rows", "blocks.1.attn.positions.columns"):
        assert not torch.equal(after[f"backbone.encoder.{name}"], start[f"backbone.encoder.{name}"]), name
    assert json.loads(json.dumps(whole.metadata["encoder"]))["positions"] == "learned"
