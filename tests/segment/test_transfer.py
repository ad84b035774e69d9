"""The preset ``hpm``: the paper's numbers, and what is added to the encoder, through training, files and resuming."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.testing import assert_close

from hardpatch.errors import UserError
from hardpatch.interchange.finetuned import SEGMENTER_METADATA
from hardpatch.models.encoder import Encoder
from hardpatch.models.transfer import add_layer_scale, add_relative_bias, train_positions, trains_positions
from hardpatch.segment.data import SegmentationSet
from hardpatch.segment.file import load_segmenter, save_segmenter
from hardpatch.segment.measure import Inference, predict_logits
from hardpatch.segment.model import UperNet, default_blocks
from hardpatch.segment.run import choices, segment
from hardpatch.segment.settings import PRESETS, check, resolved
from hardpatch.train.optimizer import layer_decay_groups
from hardpatch.train.settings import changed, to_dict
from tests.segment.small import random_norms, small_upernet
from tests.segment.test_segment import train

SLIDE = Inference(24, "slide", (16, 16), (8, 8))


def transferred() -> UperNet:
    """:func:`small_upernet` with everything that ``hpm`` adds, on the grid of crops of 16 px."""
    model = small_upernet(classes=3, dropout=0.3)
    train_positions(model.encoder, (4, 4))
    add_relative_bias(model.encoder, (4, 4))
    add_layer_scale(model.encoder)
    return model


def test_the_preset_has_the_papers_numbers() -> None:
    """Supplement A.3, and mmsegmentation's upernet_mae-base_fp16_8x2_512x512_160k_ade20k where that is silent."""
    hpm = PRESETS["hpm"]
    assert (hpm.steps, hpm.batch_size, hpm.crop, hpm.warmup_steps, hpm.weight_decay) == (
        80_000,
        16,
        (512, 512),
        1500,
        0.05,
    )
    assert (hpm.power, hpm.min_lr, hpm.layer_decay, hpm.drop_path, hpm.channels) == (1.0, 0.0, 0.65, 0.1, 768)
    assert (hpm.inference, hpm.stride, hpm.auxiliary_weight, hpm.clip) == ("slide", (341, 341), 0.4, None)
    assert (hpm.relative_positions, hpm.layer_scale, hpm.train_positions) == (True, True, True)
    assert [resolved(hpm, depth).lr for depth in (4, 12, 24, 32)] == [1e-4, 1e-4, 2e-5, 2e-5]
    assert resolved(changed(hpm, {"lr": 3e-4}), 24).lr == 3e-4
    assert (default_blocks(12), default_blocks(24)) == ((4, 6, 8, 12), (8, 12, 16, 24))
    assert default_blocks(8) == (2, 4, 6, 8)
    check(resolved(hpm, 12), 16, 20210)
    assert changed(PRESETS["small"], json.loads(json.dumps(to_dict(hpm))) | {"epochs": None}) == hpm


def test_small_networks_are_trained_as_before() -> None:
    small = PRESETS["small"]
    assert (small.relative_positions, small.layer_scale, small.train_positions) == (False, False, False)
    assert (small.lr, small.layer_decay, small.channels) == (2e-3, 0.75, 64)


@torch.no_grad()
def test_the_logits_do_not_change_at_first() -> None:
    """Off the crop's grid, positions are interpolated from another grid than before."""
    plain, model = small_upernet(classes=3).eval(), transferred().eval()
    images = torch.randn(2, 3, 16, 16)
    for ours, theirs in zip(model(images), plain(images), strict=True):
        assert torch.equal(ours, theirs)
    assert model(torch.randn(1, 3, 20, 32)).main.shape == (1, 3, 20, 32)


def test_additions_learn_at_the_rate_of_their_layer() -> None:
    model = transferred()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = layer_decay_groups(model, 0.05, 0.5)
    options = {names[id(p)]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert options.keys() == set(names.values())
    assert options["encoder.positions"] == (0.5**5, 0.0)
    for block in range(4):
        scale = 0.5 ** (4 - block)
        assert options[f"encoder.blocks.{block}.relative_bias.table"] == (scale, 0.05)
        assert options[f"encoder.blocks.{block}.ls1.gamma"] == (scale, 0.0)
        assert options[f"encoder.blocks.{block}.ls2.gamma"] == (scale, 0.0)


def test_an_interrupted_run_resumes_to_the_same_bits(pairs: SegmentationSet, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"batch_size": 4, "lr": 0.05, "val_every": None}
    whole = train(transferred(), pairs, tmp_path / "whole", **settings)
    interrupted = train(transferred(), pairs, tmp_path / "parts", interrupt_after=2, **settings)
    assert (interrupted.step, whole.step) == (2, 4)
    resumed = train(transferred(), pairs, tmp_path / "parts", **settings)
    assert_close(resumed.model.state_dict(), whole.model.state_dict(), rtol=0, atol=0)
    new, start = whole.model.state_dict(), transferred().state_dict()
    for name in ("positions", "blocks.0.relative_bias.table", "blocks.3.relative_bias.table", "blocks.1.ls2.gamma"):
        assert not torch.equal(new[f"encoder.{name}"], start[f"encoder.{name}"]), name


@torch.no_grad()
def test_a_file_brings_the_additions_back(tmp_path: Path) -> None:
    model = transferred().eval()
    random_norms(model)
    for parameter in model.encoder.parameters():
        nn.init.normal_(parameter, std=0.1)
    file = tmp_path / "segmenter.safetensors"
    save_segmenter(file, model, ["a", "b", "c"], SLIDE)
    loaded = load_segmenter(file)
    for size in ((24, 40), (16, 16)):
        images = torch.randint(0, 256, (1, 3, *size), dtype=torch.uint8)
        for inference in (SLIDE, Inference(24, "whole", (16, 16), (8, 8))):
            ours, theirs = predict_logits(model, images, inference), predict_logits(loaded.model, images, inference)
            assert torch.equal(ours, theirs)
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())


@torch.no_grad()
def test_files_of_earlier_versions_load(tmp_path: Path) -> None:
    model = small_upernet(classes=3).eval()
    file, old = tmp_path / "new.safetensors", tmp_path / "old.safetensors"
    save_segmenter(file, model, ["a", "b", "c"], SLIDE)
    with safe_open(file, "pt") as content:
        metadata = json.loads(content.metadata()[SEGMENTER_METADATA])
    del metadata["train_positions"]
    assert "block_bias_grid" not in metadata["encoder"]
    save_file(load_file(file), old, {SEGMENTER_METADATA: json.dumps(metadata)})
    loaded = load_segmenter(old)
    images = torch.randint(0, 256, (1, 3, 24, 32), dtype=torch.uint8)
    assert torch.equal(predict_logits(loaded.model, images, SLIDE), predict_logits(model, images, SLIDE))
    assert not trains_positions(loaded.model.encoder)


def test_the_old_preset_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        segment("run", "data", "data", tmp_path / "out", preset="paper")
    assert str(error.value).startswith("--preset: paper is now hpm, with 768 channels")
    assert "resumes without --preset" in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("depth", "settings", "lines"),
    [
        (
            12,
            {},
            [
                "--lr 0.0001 for an encoder of fewer than 24 blocks",
                "--blocks 4 6 8 12: maps after these blocks, as in mmsegmentation",
            ],
        ),
        (
            24,
            {},
            [
                "--lr 2e-05 for an encoder of 24 blocks, as the paper for ViT-L; layer decay 0.65 is mmsegmentation's "
                "for MAE's ViT-B, set another",
                "--blocks 8 12 16 24: maps after these blocks, as in mmsegmentation",
            ],
        ),
        (
            24,
            {"weights": "random", "blocks": [1, 2, 3, 4]},
            ["--lr 2e-05 for an encoder of 24 blocks, as the paper for ViT-L"],
        ),
        (6, {"lr": 0.1}, ["--blocks 1 3 4 6: maps after these blocks, evenly spread"]),
    ],
)
def test_what_the_encoder_decides_is_said(depth: int, settings: dict[str, Any], lines: list[str]) -> None:
    encoder = Encoder(image_size=(8, 8), patch_size=4, width=8, depth=depth, heads=2)
    run = changed(PRESETS["hpm"], settings)
    model = UperNet(encoder, 2, mean=[0.5] * 3, std=[0.2] * 3, channels=4, blocks=run.blocks)
    assert choices(run, model) == lines


def test_vit_b_at_the_papers_size_has_the_papers_shapes() -> None:
    """Without memory for weights: 12 blocks, 32 x 32 patches in a crop, tables of 63 x 63 + 3 entries."""
    with torch.device("meta"):
        encoder = Encoder(image_size=(224, 224), patch_size=16)
    encoder.positions = torch.zeros(196, 768)
    train_positions(encoder, (32, 32))
    assert encoder.positions is not None
    assert encoder.positions.shape == (1024, 768)
    add_relative_bias(encoder, (32, 32))
    tables = [value.shape for name, value in encoder.named_parameters() if name.endswith("relative_bias.table")]
    assert tables == [(63 * 63 + 3, 12)] * 12
