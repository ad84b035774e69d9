"""Areas under ROC curves of anomaly scores against masks of the defects, per pixel and per image."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hardpatch.measure.difficulty import upsample
from hardpatch.measure.object_masks import MaskReader
from hardpatch.methods.hpm import HPM
from hardpatch.rank.normal import Normal, image_scores
from hardpatch.rank.parts import Parts

PIXELS = 20_000_000
"""Pixels that an area is measured on at most; of larger sets each image gives its share of them, drawn at random."""
KINDS = {
    "score": "score: loss of masked patches against normal images and the rest of the image",
    "masked": "loss of masked patches, as it is",
    "whole": "reconstruction error of the whole image, nothing masked, as it is",
    "whole_score": "the same error against normal images and the rest of the image",
}


@dataclass(frozen=True)
class Areas:
    """Areas under ROC curves by kind of score, see :data:`KINDS`; None where all images or none have a defect."""

    pixel: dict[str, float]
    image: dict[str, float | None]
    pixels: int
    """number of pixels that were compared"""
    defective: int
    """number of images with a defect"""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def measure_areas(
    parts: Parts, normal: Normal, normal_whole: Normal, model: HPM, read_mask: MaskReader
) -> Areas | None:
    """Compare scores with masks.

    Args:
        parts: losses of the images.
        normal: losses of normal images.
        normal_whole: errors of their reconstructions with nothing masked.
        model: whose grid of patches and image size to use.
        read_mask: of an image, by its position in the set.

    Returns:
        None if no pixel belongs to a defect, or all do.
    """
    from sklearn.metrics import roc_auc_score

    share = max(1, PIXELS // max(1, len(parts.column("index"))))
    truth: list[NDArray[np.bool_]] = []
    pixels: dict[str, list[NDArray[np.float32]]] = {name: [] for name in KINDS}
    highest: dict[str, list[NDArray[np.float64]]] = {name: [] for name in KINDS}
    defective: list[bool] = []
    for part in parts.read(["index", "loss", "whole"]):
        maps = {"score": normal.scores(part["loss"]), "masked": part["loss"], "whole": part["whole"]}
        maps["whole_score"] = normal_whole.scores(part["whole"])
        for name, values in maps.items():
            highest[name].append(image_scores(values))
        for row, index in enumerate(part["index"].tolist()):
            mask = read_mask(index)
            defective.append(bool(mask.any()))
            chosen = _chosen(mask.size, share, index)
            truth.append(mask.ravel()[chosen])
            for name, values in maps.items():
                tensor = torch.from_numpy(np.array(values[row : row + 1, None], dtype=np.float32))
                pixels[name].append(upsample(tensor, model.grid, mask.shape)[0, 0].numpy().ravel()[chosen])
    of_pixels = np.concatenate(truth)
    if of_pixels.all() or not of_pixels.any():
        return None
    both = 0 < sum(defective) < len(defective)
    return Areas(
        {name: float(roc_auc_score(of_pixels, np.concatenate(values))) for name, values in pixels.items()},
        {name: float(roc_auc_score(defective, np.concatenate(v))) if both else None for name, v in highest.items()},
        len(of_pixels),
        sum(defective),
    )


def _chosen(pixels: int, share: int, index: int) -> NDArray[np.int64] | slice:
    """Return all pixels of an image, or as many as its share."""
    if pixels <= share:
        return slice(None)
    return np.random.default_rng(index).choice(pixels, share, replace=False)
