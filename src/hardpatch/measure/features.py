"""Frozen features of labeled images, the input of k-NN and the linear probe."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from hardpatch.choices import PoolName
from hardpatch.data.batch import Batch
from hardpatch.data.names import some
from hardpatch.data.sources import Source
from hardpatch.errors import UserError
from hardpatch.methods.hpm import HPM

Pool = PoolName
ProgressCallback = Callable[[int, int | None], None]
"""Called with the amounts done and in total (None where the total is unknown)."""


class Features(NamedTuple):
    """Features of a set of images, on the CPU."""

    features: Tensor
    """float32 ``[n, D]``"""
    labels: Tensor
    """int64 ``[n]``, -1 for images without a label"""
    bad: list[str]
    """one line for each image that could not be read"""
    indices: Tensor
    """int64 ``[n]``, increasing positions of the images in their set"""


class LabelMapping(NamedTuple):
    """Labels of a validation set in terms of the training classes."""

    classes: tuple[str, ...]
    """names of the training classes"""
    mapping: Tensor
    """int64, the training label of each validation label, -1 for labels without images: ``mapping[val_labels]``"""


@torch.inference_mode()
def extract(
    model: HPM,
    batches: Iterable[Batch],
    *,
    device: torch.device | str,
    pool: Pool = "mean",
    autocast: torch.dtype | None = None,
    total: int | None = None,
    progress: ProgressCallback | None = None,
    blocks: Sequence[int] = (),
) -> Features:
    """Encode whole images, nothing masked, into one vector each.

    Args:
        model: in eval mode, on ``device``.
        batches: from :func:`hardpatch.data.loader.eval_batches`.
        device: where the model is.
        pool: ``"mean"`` averages the patch tokens, ``"class"`` takes the class token.
        autocast: type of the computation, for example ``torch.bfloat16`` on a GPU; None is float32.
        total: the number of images, for ``progress``.
        progress: called after each batch with (images done, ``total``).
        blocks: increasing numbers of blocks, from 1, whose vectors are put one after the other, each after the last
            norm; empty for the last block.

    Raises:
        UserError: if the features are not finite.
    """
    features, labels, indices, bad = [], [], [], []
    done = 0
    for batch in batches:
        images = model.normalize(batch.images.to(device, non_blocking=True))
        with torch.autocast(torch.device(device).type, dtype=autocast, enabled=autocast is not None):
            outputs = model.host.encoder.latents(images, None, blocks) if blocks else [model.encode(images)]
        pooled = [_pooled(tokens.float(), pool) for tokens in outputs]  # each of [B, 1 + N, D]
        features.append(torch.cat(pooled, dim=1).cpu())
        labels.append(batch.labels)
        indices.append(batch.indices)
        bad.extend(batch.bad)
        done += len(batch.images) + len(batch.bad)
        if progress is not None:
            progress(done, total)
    result = Features(torch.cat(features), torch.cat(labels), bad, torch.cat(indices))
    if not bool(result.features.isfinite().all()):
        raise UserError("model: expected finite features, got NaN or infinity; its training diverged, use another one")
    return result


def _pooled(tokens: Tensor, pool: Pool) -> Tensor:
    return tokens[:, 1:].mean(dim=1) if pool == "mean" else tokens[:, 0]


def align_labels(train: Source, val: Source) -> LabelMapping:
    """Match the labels of two sets by class *name*, since their folders may number the classes differently.

    Raises:
        UserError: if an image has no label, ``train`` has one class only, or ``val`` has a class that ``train`` lacks.
    """
    train_names, val_names = _used_names(train, "train"), _used_names(val, "val")
    number = {name: label for label, name in train_names.items()}
    missing = sorted(set(val_names.values()) - set(number))
    if missing:
        raise UserError(
            f"val: expected only classes that train has ({some(sorted(number), repr, 5)}), got "
            f"{some(missing, repr, 5)}: remove those images, add them to train, or give the classes the same names"
        )
    if len(number) == 1:
        (only,) = number
        raise UserError(f"train: one class, {only!r}, expected two or more; are the class folders one level lower?")
    assert train.classes is not None
    assert val.classes is not None
    mapping = torch.full((len(val.classes),), -1)
    for label, name in val_names.items():
        mapping[label] = number[name]
    return LabelMapping(train.classes, mapping)


def _used_names(source: Source, argument: str) -> dict[int, str]:
    """Return the class name of every label that occurs in ``source``."""
    labels = [source.label(index) for index in range(len(source))]
    if source.classes is None or None in labels:
        without, reason = labels.count(None), getattr(source, "unlabeled", "")  # which sources have when just opened
        if without < len(labels):
            first = source.name(labels.index(None))
            reason = f"{without} of {len(labels)}, the first: {first} (null, empty and negative labels count as none)"
        raise UserError(
            f"{argument}: expected a label for every image, got {'some' if without < len(labels) else 'images'} "
            f"without; {f'{reason}; ' if reason else ''}sort the images into one folder per class, or use a table with "
            "the column 'label'"
        )
    return {label: source.classes[label] for label in sorted({label for label in labels if label is not None})}
