"""Parameter groups of an optimizer, with and without weight decay and layer decay, and its learning rates."""

from typing import Any

from torch import nn
from torch.optim import Optimizer

from hardpatch.models.encoder import Encoder

BETAS = (0.9, 0.999)
"""AdamW betas for training under labels."""


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Group parameters by weight decay: none on biases and norms, ``weight_decay`` on matrices and tokens."""
    from timm.optim import param_groups_weight_decay

    # Without any weight decay timm makes one group of all parameters, so it is set afterwards.
    plain, decayed = param_groups_weight_decay(model, 1.0)
    return [plain, decayed | {"weight_decay": weight_decay, "decays": True}]


def set_weight_decay(optimizer: Optimizer, weight_decay: float) -> None:
    """Set the weight decay of those groups of :func:`parameter_groups` that have one."""
    for group in optimizer.param_groups:
        if group.get("decays"):
            group["weight_decay"] = weight_decay


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Give each group ``lr`` times its ``lr_scale``, see :func:`layer_decay_groups`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


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
