"""Learning rates in a training that started from existing weights.

Parts that are new learn first, while the encoder is frozen. Afterwards it learns at a lower rate, its first blocks at
the lowest; :mod:`hardpatch.train.freeze` takes some of them out.
"""

from typing import Any

from torch import nn

from hardpatch.configuration.sections import RunConfig
from hardpatch.methods.hpm import HPM
from hardpatch.train.optimizer import layer_of

TOKENS = ("cls_token", "mask_token", "positions", "class_position", "registers")
"""Parameters of an encoder without weight decay."""


def parameter_groups(model: HPM, run: RunConfig) -> list[dict[str, Any]]:
    """Group parameters by their learning rate and weight decay.

    The rate of a group is to be multiplied by its ``lr_scale``: ``encoder_lr * layer_decay ** (blocks + 1 - layer)`` in
    the encoder, 1 elsewhere. Groups of the encoder, whose first steps are frozen, say ``encoder``. Biases, norms,
    tokens and positions have no weight decay.

    Args:
        model: the student.
        run: its configuration.
    """
    init, depth = run.init, len(model.host.encoder.blocks)
    excepted = {f"host.{name}" for name in model.host.no_weight_decay}
    excepted |= {f"host.encoder.{name}" for name in TOKENS}
    groups: dict[tuple[bool, int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        inside = name.startswith("host.encoder.") and name != "host.encoder.mask_token"
        layer = layer_of(name.removeprefix("host."), depth) if inside else depth + 1
        decays = parameter.ndim > 1 and name not in excepted
        scale = init.encoder_lr * init.layer_decay ** (depth + 1 - layer) if inside else 1.0
        group = {"params": [], "lr_scale": scale, "encoder": inside, "weight_decay": 0.0}
        group |= {"weight_decay": run.optim.weight_decay, "decays": True} if decays else {}
        groups.setdefault((inside, layer, decays), group)["params"].append(parameter)
    return list(groups.values())


def drop_gradients(encoder: nn.Module) -> None:
    """Remove the gradients of a frozen encoder, so that a step leaves it and its optimizer state untouched."""
    for name, parameter in encoder.named_parameters():
        if name != "mask_token":
            parameter.grad = None
