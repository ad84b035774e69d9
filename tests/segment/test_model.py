"""UperNet against transformers' heads and against its parts, and the learning rates of its layers."""

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from hardpatch.segment.model import FCNHead, FeaturePyramid, UperNet, UperNetHead, quarters
from hardpatch.train.optimizer import layer_decay_groups
from tests.segment.small import random_norms, small_upernet


def maps_of(widths: tuple[int, ...]) -> list[Tensor]:
    sizes = ((24, 36), (12, 18), (6, 9), (3, 5))
    return [torch.randn(2, width, *size) for width, size in zip(widths, sizes, strict=True)]


@pytest.mark.parametrize("training", [False, True])
def test_head_equals_transformers(training: bool) -> None:
    upernet = pytest.importorskip("transformers.models.upernet.modeling_upernet")
    configuration = pytest.importorskip("transformers.models.upernet.configuration_upernet")
    # a configuration must have a backbone
    backbone = pytest.importorskip("transformers").ResNetConfig(out_features=["stage1"])
    config = configuration.UperNetConfig(
        backbone_config=backbone, hidden_size=24, pool_scales=[1, 2, 3, 6], num_labels=7, auxiliary_channels=12
    )
    widths = (8, 16, 12, 20)
    torch.manual_seed(0)
    ours, theirs = UperNetHead(widths, 7, 24, dropout=0.0), upernet.UperNetHead(config, list(widths))
    random_norms(ours)
    theirs.load_state_dict(ours.state_dict())  # strict: the names are the same
    auxiliary, their_auxiliary = FCNHead(12, 7, 12, dropout=0.0), upernet.UperNetFCNHead(config, list(widths))
    random_norms(auxiliary)
    their_auxiliary.load_state_dict(auxiliary.state_dict())
    for head in (ours, theirs, auxiliary, their_auxiliary):
        head.train(training)
    maps = maps_of(widths)
    logits = ours(maps)
    assert logits.shape == (2, 7, 24, 36)
    assert_close(logits, theirs(maps), rtol=1e-5, atol=1e-5)
    assert_close(auxiliary(maps[2]), their_auxiliary(maps), rtol=1e-5, atol=1e-5)


def test_pyramid_scales() -> None:
    pyramid = FeaturePyramid(6)
    maps = [torch.randn(2, 6, 3, 4) for _ in range(4)]
    levels = pyramid(maps)
    assert [level.shape[2:] for level in levels] == [(12, 16), (6, 8), (3, 4), (2, 2)]
    assert torch.equal(levels[2], maps[2])
    assert levels[3][0, 0, 0, 0] == maps[3][0, 0, :2, :2].max()
    assert levels[3][0, 0, 1, 1] == maps[3][0, 0, 2, 2:].max()  # the odd row alone


@torch.no_grad()
@pytest.mark.parametrize("positions", ["sincos", "relative"])
def test_network_equals_its_parts(positions: str) -> None:
    model = small_upernet(positions).eval()
    random_norms(model)
    if model.encoder.relative_bias is not None:
        nn.init.normal_(model.encoder.relative_bias.table)
    images = torch.randn(2, 3, 20, 32)  # 5 x 8 patches, not the 4 x 6 of pre-training
    levels: list[Tensor] = []
    for block in model.encoder.blocks:
        block.register_forward_hook(lambda module, inputs, output: levels.append(output))
    logits = model(images)
    assert model.blocks == (1, 2, 3, 4)
    assert len(levels) == 4
    grids = []
    for tokens in levels:
        grid = torch.zeros(2, 32, 5, 8)
        for patch in range(40):
            grid[:, :, patch // 8, patch % 8] = tokens[:, 1 + patch]
        grids.append(grid)
    maps = [level(grid) for level, grid in zip(model.neck.levels, grids, strict=True)]
    assert_close(logits.main, model.head(maps))
    assert_close(logits.auxiliary, model.auxiliary_head(maps[2]))
    assert logits.main.shape == (2, 5, 20, 32)
    assert logits.auxiliary.shape == (2, 5, 5, 8)
    assert_close(model.encoder(images), model.encoder.norm(levels[3]))


def test_every_part_learns() -> None:
    model = small_upernet(dropout=0.5).train()
    logits = model(model.normalize(torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8)))
    (logits.main.square().sum() + logits.auxiliary.square().sum()).backward()
    without_gradient = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without_gradient == ["encoder.norm.weight", "encoder.norm.bias"]  # features are taken before it


@torch.no_grad()
def test_intermediates_of_some_blocks() -> None:
    encoder = small_upernet(depth=5).encoder.eval()
    images = torch.randn(2, 3, 16, 24)
    every = encoder.intermediates(images, [1, 2, 3, 4, 5])
    two = encoder.intermediates(images, [2, 4])
    assert [level.shape for level in every] == [(2, 24, 32)] * 5
    assert torch.equal(two[0], every[1])
    assert torch.equal(two[1], every[3])
    for wrong in ([], [0, 1], [2, 2], [3, 1], [6]):
        with pytest.raises(ValueError, match=r"blocks: expected increasing numbers from 1 to 5"):
            encoder.intermediates(images, wrong)


def test_quarters_of_the_depth() -> None:
    assert quarters(12) == (3, 6, 9, 12)
    assert quarters(24) == (6, 12, 18, 24)
    assert quarters(6) == (1, 3, 4, 6)
    with pytest.raises(ValueError, match="4 blocks or more, this one has 3"):
        quarters(3)


@pytest.mark.parametrize("blocks", [(1, 2, 3), (1, 2, 3, 3), (0, 1, 2, 3), (1, 2, 3, 5)])
def test_wrong_blocks(blocks: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"blocks: expected 4 increasing numbers from 1 to 4, got \["):
        UperNet(small_upernet().encoder, 5, mean=[0.4] * 3, std=[0.2] * 3, blocks=blocks)


def test_wrong_normalization() -> None:
    with pytest.raises(ValueError, match="mean, std: expected 3 numbers each, got 1 and 3"):
        UperNet(small_upernet().encoder, 5, mean=[0.4], std=[0.2] * 3)


def test_learning_rates_fall_from_layer_to_layer_downwards() -> None:
    model = small_upernet()
    groups = layer_decay_groups(model, 0.05, 0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    options = {names[id(p)]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert options.keys() == set(names.values())
    assert options["encoder.cls_token"] == (0.5**5, 0.0)
    assert options["encoder.patch_embed.proj.weight"] == (0.5**5, 0.05)
    assert options["encoder.blocks.0.attn.qkv.weight"] == (0.5**4, 0.05)
    assert options["encoder.blocks.3.mlp.fc2.bias"] == (0.5, 0.0)
    assert options["neck.levels.0.0.weight"] == (1.0, 0.05)
    assert options["head.fpn_bottleneck.batch_norm.weight"] == (1.0, 0.0)
    assert options["auxiliary_head.classifier.weight"] == (1.0, 0.05)
