"""Which parameters of each host have weight decay, by name, in the optimizer of a run."""

import pytest
from lightning_fabric import Fabric

from hardpatch.choices import HostName
from hardpatch.configuration import config
from hardpatch.configuration.build import initial_model
from hardpatch.pretrain import recipes
from hardpatch.pretrain.step import Learner

SETTINGS = [
    *("--model.width=32", "--model.depth=1", "--model.heads=2", "--model.decoder_width=16", "--model.decoder_heads=2"),
    *("--model.decoder_depth=1", "--data.image_size=32", "--model.patch_size=8", "--ibot.local_size=16"),
    *("--ibot.outputs=8", "--ibot.head_hidden=8", "--ibot.head_bottleneck=4", "--optim.weight_decay=0.3"),
]


def decays(host: HostName, *settings: str) -> dict[str, bool]:
    """Whether each parameter has weight decay, by its name."""
    base = config.to_dict(config.build(recipes.read("demo"), SETTINGS))
    run = config.build({**base, "method": {**base["method"], "host": host}}, settings)
    model = initial_model(run)
    learner = Learner(run, model, Fabric(accelerator="cpu", devices=1), 1)
    name_of = {parameter: name for name, parameter in model.named_parameters()}
    result = {
        name_of[parameter]: group["weight_decay"] != 0.0
        for group in learner.adamw.param_groups
        for parameter in group["params"]
    }
    assert result.keys() == set(name_of.values())
    assert {group["weight_decay"] for group in learner.adamw.param_groups} == {0.0, 0.3}
    return result


def tokens(result: dict[str, bool]) -> dict[str, bool]:
    """Those of the class token, mask tokens and positions, by a short name."""
    words = ("token", "position", "table")
    return {name.removeprefix("host."): value for name, value in result.items() if any(word in name for word in words)}


@pytest.mark.parametrize("host", ["beit", "simmim"])
def test_beit_and_simmim_do_not_decay_tokens(host: HostName) -> None:
    relative = tokens(decays(host, "--model.positions=relative"))
    assert relative == {"encoder.cls_token": False, "encoder.mask_token": False, "encoder.relative_bias.table": True}
    learned = tokens(decays(host, "--model.positions=learned"))
    names = ("cls_token", "mask_token", "positions", "class_position")
    assert learned == {f"encoder.{name}": False for name in names}


def test_ibot_decays_tokens_and_positions() -> None:
    names = ("cls_token", "mask_token", "positions", "class_position")
    assert tokens(decays("ibot", "--model.positions=learned")) == {f"encoder.{name}": True for name in names}


def test_mae_decays_tokens() -> None:
    assert tokens(decays("mae")) == {"encoder.cls_token": True, "decoder_embed.mask_token": True}


@pytest.mark.parametrize("host", ["mae", "simmim", "beit", "ibot"])
def test_matrices_decay_and_vectors_do_not(host: HostName) -> None:
    for name, value in decays(host).items():
        if name.endswith("weight") and "norm" not in name:
            assert value, name
        elif name.endswith("bias") or "norm" in name:
            assert not value, name
