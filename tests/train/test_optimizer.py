"""Parameter groups for weight decay, and for layer decay against its formula and timm's groups."""

import pytest
import torch

from hardpatch.finetune.model import Classifier
from hardpatch.models.encoder import Encoder
from hardpatch.train.optimizer import layer_decay_groups, layer_of, parameter_groups
from tests.finetune.small import small_classifier
from tests.small import small_hpm


def test_no_decay_on_biases_and_norms() -> None:
    model = small_hpm()
    without_decay, with_decay = parameter_groups(model, weight_decay=0.05)
    assert (without_decay["weight_decay"], with_decay["weight_decay"]) == (0.0, 0.05)
    names = {id(p): name for name, p in model.named_parameters()}
    undecayed = {names[id(p)] for p in without_decay["params"]}
    assert undecayed == {name for name, p in model.named_parameters() if name.endswith("bias") or "norm" in name}
    assert len(without_decay["params"]) + len(with_decay["params"]) == len(names)


def test_learning_rates_of_vit_base_are_those_of_the_formula_and_of_timm() -> None:
    from timm.models.vision_transformer import VisionTransformer
    from timm.optim import param_groups_layer_decay

    with torch.device("meta"):
        classifier = Classifier(
            Encoder(image_size=(224, 224), patch_size=16, width=768, depth=12, heads=12),
            1000,
            mean=[0.5] * 3,
            std=[0.5] * 3,
        )
        theirs = VisionTransformer(global_pool="avg", fc_norm=True)
    groups = layer_decay_groups(classifier, weight_decay=0.05, layer_decay=0.8)
    name_of = {parameter: name for name, parameter in classifier.named_parameters()}
    ours = {name_of[p]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert ours.keys() == set(name_of.values())
    assert sum(len(group["params"]) for group in groups) == len(name_of)
    for name, layer in {
        "encoder.cls_token": 0,
        "encoder.positions": 0,
        "encoder.patch_embed.proj.bias": 0,
        "encoder.blocks.0.attn.qkv.weight": 1,
        "encoder.blocks.11.mlp.fc2.bias": 12,
        "fc_norm.weight": 13,
        "head.weight": 13,
    }.items():
        assert ours[name][0] == pytest.approx(0.8 ** (12 + 1 - layer)), name
    assert ours["head.weight"] == (1.0, 0.05)
    assert ours["encoder.cls_token"][1] == ours["encoder.positions"][1] == ours["head.bias"][1] == 0.0

    reference = param_groups_layer_decay(
        theirs, weight_decay=0.05, layer_decay=0.8, no_weight_decay_list=theirs.no_weight_decay()
    )
    timm_name = {parameter: name for name, parameter in theirs.named_parameters()}
    expected = {
        timm_name[p]: (group["lr_scale"], group["weight_decay"]) for group in reference for p in group["params"]
    }
    renamed = {name.removeprefix("encoder.").replace("positions", "pos_embed"): pair for name, pair in ours.items()}
    assert renamed.keys() == expected.keys()
    for name, pair in expected.items():
        assert renamed[name] == pytest.approx(pair), name


def test_a_shared_position_bias_learns_like_the_head() -> None:
    assert layer_of("encoder.relative_bias.table", 12) == 13
    names = dict(small_classifier(relative=True).named_parameters())
    assert "encoder.relative_bias.table" in names
    assert "encoder.mask_token" not in names
