"""Frozen features of labeled images: what k-NN and the linear probe are fed."""

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from hardpatch.data.batch import Batch
from hardpatch.data.sources import Source
from hardpatch.errors import UserError
from hardpatch.methods.hpm import HPM

Progress = Callable[[int, int | None], None]
"""Called with how much is done and how much there is to do (None where nobody knows)."""


class Features(NamedTuple):
    """The features of a set of images, on the CPU."""

    features: Tensor
    """float32 ``[n, D]``"""
    labels: Tensor
    """int64 ``[n]``, -1 where an image has none"""
    bad: list[str]
    """One line for each image that could not be read."""
    indices: Tensor
    """int64 ``[n]``, of the images in their set, increasing"""


@torch.inference_mode()
def extract(
    model: HPM,
    batches: Iterable[Batch],
    *,
    device: torch.device | str,
    pool: Literal["mean", "class"] = "mean",
    autocast: torch.dtype | None = None,
    total: int | None = None,
    progress: Progress | None = None,
) -> Features:
    """Run the encoder over whole images, nothing masked, and keep one vector of each.

    Args:
        model: in eval mode, on ``device``.
        batches: what :func:`hardpatch.data.loader.eval_batches` yields.
        device: where the model is.
        pool: ``"mean"`` averages the patch tokens, ``"class"`` takes the class token.
        autocast: compute in this type, for example ``torch.bfloat16`` on a GPU; None computes in float32.
        total: the number of images, for ``progress``.
        progress: called after each batch with (images done, ``total``).

    Raises:
        UserError: if the features are not finite.
    """
    features, labels, indices, bad = [], [], [], []
    done = 0
    for batch in batches:
        images = model.normalize(batch.images.to(device, non_blocking=True))
        with torch.autocast(torch.device(device).type, dtype=autocast, enabled=autocast is not None):
            tokens = model.encode(images).float()  # [B, 1 + N, D]
        features.append((tokens[:, 1:].mean(dim=1) if pool == "mean" else tokens[:, 0]).cpu())
        labels.append(batch.labels)
        indices.append(batch.indices)
        bad.extend(batch.bad)
        done += len(batch.images) + len(batch.bad)
        if progress is not None:
            progress(done, total)
    result = Features(torch.cat(features), torch.cat(labels), bad, torch.cat(indices))
    if not bool(result.features.isfinite().all()):
        raise UserError("model: expected finite features, got NaN or infinity; its training diverged, take another one")
    return result


def align_labels(train: Source, val: Source) -> tuple[tuple[str, ...], Tensor]:
    """Bring the labels of two sets together by class *name*: their folders need not number the classes alike.

    Where there are labels but no names, the classes are called "0", "1" and so on.

    Returns:
        The names of the training classes, and the training label of each label of ``val``, int64 (-1 for one that no
        image of ``val`` has): ``mapping[val_labels]`` are labels of the training set.

    Raises:
        UserError: if an image has no label, or if ``val`` has a class that ``train`` lacks.
    """
    train_names, val_names = _used_names(train, "train"), _used_names(val, "val")
    number = {name: label for label, name in train_names.items()}
    missing = sorted(set(val_names.values()) - set(number))
    if missing:
        raise UserError(
            f"val: expected only classes that train has ({_some(sorted(number))}), got {_some(missing)}: remove "
            "those images, add them to train, or name the classes alike"
        )
    classes = train.classes or tuple(str(label) for label in range(max(train_names) + 1))
    mapping = torch.full((max(val_names) + 1,), -1)
    for label, name in val_names.items():
        mapping[label] = number[name]
    return classes, mapping


def _used_names(source: Source, argument: str) -> dict[int, str]:
    """The name of every label that some image of ``source`` has."""
    used = {source.label(index) for index in range(len(source))}
    if None in used:
        raise UserError(
            f"{argument}: expected a label for every image, got {'some' if len(used) > 1 else 'images'} without; sort "
            "the images into one folder a class, or give a Parquet file with the whole-number column 'label'"
        )
    labels = sorted(label for label in used if label is not None)
    return {label: source.classes[label] if source.classes else str(label) for label in labels}


def _some(names: list[str], most: int = 5) -> str:
    shown = ", ".join(repr(name) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")
