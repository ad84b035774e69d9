"""Images of a set that are most like an image, by a run's features."""

from typing import NamedTuple

import torch
from torch import Tensor

from hardpatch.data.augment import EvalTransform
from hardpatch.data.loader import eval_batches
from hardpatch.data.sources import OpenedSource
from hardpatch.data.survey import adapted
from hardpatch.measure.features import ProgressCallback, extract
from hardpatch.methods.hpm import HPM

SHOWN = 6
"""Neighbors that are shown."""


class Neighbor(NamedTuple):
    """An image of the set."""

    number: int
    similarity: float
    """cosine of the features"""


class FeatureSet:
    """Features of a set, of length 1.

    Args:
        model: that computes them, in eval mode.
        source: the set.
        device: of the model.
        batch_size: images per forward pass.
        workers: processes that decode images.
        progress: called after each batch with (images done, images).

    Raises:
        UserError: if no image can be decoded.
    """

    def __init__(
        self,
        model: HPM,
        source: OpenedSource,
        device: torch.device,
        *,
        batch_size: int = 64,
        workers: int = 0,
        progress: ProgressCallback | None = None,
    ) -> None:
        transform = EvalTransform(model.image_size, adapted(model.reading, source, "--set"))
        batches = eval_batches(source, transform, batch_size=batch_size, workers=workers)
        found = extract(model, batches, device=device, total=len(source), progress=progress)
        self.vectors, self.indices = torch.nn.functional.normalize(found.features, dim=1), found.indices
        self.bad = tuple(found.bad)

    def nearest(self, vector: Tensor, but: int | None = None) -> list[Neighbor]:
        """Return the images most like one with this vector ``[D]``, the most similar first.

        Args:
            vector: of length 1.
            but: image of the set that is left out, as it is the one in question.
        """
        similarity = self.vectors @ vector.cpu()
        top = similarity.topk(min(SHOWN + 1, len(similarity)))
        pairs = zip(self.indices[top.indices].tolist(), top.values.tolist(), strict=True)
        return [Neighbor(number, value) for number, value in pairs if number != but][:SHOWN]
