"""Optimizer groups."""

from typing import Any

from torch import nn

from hardpatch.models.encoder import Encoder


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters in two groups: weight decay on matrices and tokens, none on biases and norms."""
    from timm.optim import param_groups_weight_decay

    return param_groups_weight_decay(model, weight_decay)


def layer_decay_groups(model: nn.Module, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Parameters of a network around an ``encoder``, like :class:`Classifier`, in two groups a layer, with and without
    weight decay (Bao et al. 2022, BEiT).

    ``lr_scale`` of a group is ``layer_decay ** (depth + 1 - layer)``, by which its learning rate is to be multiplied:
    1 for the head. Vectors, positions and the class token have no weight decay.
    """
    encoder = model.encoder
    assert isinstance(encoder, Encoder)
    depth = len(encoder.blocks)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        layer = layer_of(name, depth)
        decays = parameter.ndim > 1 and name not in ("encoder.cls_token", "encoder.positions")
        group = groups.setdefault(
            (layer, decays),
            {
                "params": [],
                "lr_scale": layer_decay ** (depth + 1 - layer),
                "weight_decay": weight_decay if decays else 0.0,
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def layer_of(name: str, depth: int) -> int:
    """The layer of a parameter of a network around an ``encoder``: 0 before the blocks, block k is k + 1, ``depth + 1``
    after them.

    The relative position bias, which all blocks share, counts as after them (BEiT).
    """
    if name.startswith(("encoder.cls_token", "encoder.positions", "encoder.patch_embed.")):
        return 0
    if name.startswith("encoder.blocks."):
        return int(name.split(".")[2]) + 1
    return depth + 1
