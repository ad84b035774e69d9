"""Parameter groups of an optimizer for weight decay and layer decay, and their learning rates."""

from collections.abc import Collection
from typing import Any

from lightning_fabric import Fabric
from torch import nn
from torch.optim import Optimizer

from hardpatch.models.encoder import Encoder

BETAS = (0.9, 0.999)
"""AdamW betas for training on labels."""


def fused_on_gpu(fabric: Fabric, precision: str) -> bool:
    """Return whether an optimizer shall be fused: on a GPU, where it then skips a bad step without a synchronization.

    Not with float16, whose gradients the fused step unscales by itself, after they should have been clipped.
    """
    return fabric.device.type == "cuda" and precision != "fp16"


def parameter_groups(
    model: nn.Module, weight_decay: float, no_weight_decay: Collection[str] = ()
) -> list[dict[str, Any]]:
    """Group parameters by weight decay: 0 for biases, norms and ``no_weight_decay``, the given value for the others.

    Args:
        model: network to be trained.
        weight_decay: of matrices and, unless they are excepted, of tokens and positions.
        no_weight_decay: names of parameters without weight decay; names that the model lacks are ignored.
    """
    from timm.optim import param_groups_weight_decay

    # timm puts all parameters into one group for a weight decay of 0, so the value is set afterwards.
    without_decay, with_decay = param_groups_weight_decay(model, 1.0, no_weight_decay_list=no_weight_decay)
    return [without_decay, with_decay | {"weight_decay": weight_decay, "decays": True}]


def set_weight_decay(optimizer: Optimizer, weight_decay: float) -> None:
    """Set the weight decay of the groups of :func:`parameter_groups` that have one."""
    for group in optimizer.param_groups:
        if group.get("decays"):
            group["weight_decay"] = weight_decay


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Give each group ``lr`` times its ``lr_scale``, see :func:`layer_decay_groups`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def layer_decay_groups(model: nn.Module, weight_decay: float, layer_decay: float) -> list[dict[str, Any]]:
    """Group parameters by layer, with and without weight decay (Bao et al. 2022, BEiT).

    The learning rate of a group is to be multiplied by its ``lr_scale``, ``layer_decay ** (depth + 1 - layer)``, which
    is 1 for the head. Vectors, positions and the class token have no weight decay. Frozen parameters are in no group.

    Args:
        model: network around an ``encoder``, such as :class:`~hardpatch.finetune.model.Classifier`.
        weight_decay: of matrices.
        layer_decay: factor of the learning rate from each layer to the one below it.
    """
    encoder = model.encoder
    assert isinstance(encoder, Encoder)
    depth = len(encoder.blocks)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        layer = layer_of(name, depth)
        decays = parameter.ndim > 1 and name not in ("encoder.cls_token", "encoder.positions", "encoder.registers")
        group = groups.setdefault(
            (layer, decays),
            {
                "params": [],
                "lr_scale": layer_decay ** (depth + 1 - layer),
                "weight_decay": weight_decay if decays else 0.0,
            },
        )
        if parameter.requires_grad:  # a frozen one keeps the order of the groups, in which a norm is summed
            group["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def layer_of(name: str, depth: int) -> int:
    """Return the layer of a parameter: 0 before the blocks, ``k + 1`` in block k, ``depth + 1`` after the blocks.

    The relative position bias, which all blocks share, counts as after the blocks (BEiT).

    Args:
        name: of the parameter, in a network around an ``encoder``.
        depth: number of blocks.
    """
    before = ("cls_token", "positions", "patch_embed.", "registers", "norm_pre.")
    if name.startswith(tuple(f"encoder.{part}" for part in before)):
        return 0
    if name.startswith("encoder.blocks."):
        return int(name.split(".")[2]) + 1
    return depth + 1
