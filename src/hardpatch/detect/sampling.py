"""Anchors and boxes that the heads of Mask R-CNN are trained on: drawn for each image by itself."""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler  # type: ignore[import-untyped]

from hardpatch.processes import average


class SeededSampler(BalancedPositiveNegativeSampler):  # type: ignore[misc]
    """Sampler of torchvision whose draws for an image do not depend on the other images of a batch.

    Args:
        sampler: has the numbers to draw.
    """

    def __init__(self, sampler: BalancedPositiveNegativeSampler) -> None:
        super().__init__(sampler.batch_size_per_image, sampler.positive_fraction)
        self.seeds: Sequence[int] = ()
        """of each image of the next batch; without them the draws follow torch's generator"""
        self.positives = torch.zeros(())
        """positive ones among the last draws"""
        self.drawn = torch.zeros(())
        """number of the last draws"""

    def __call__(self, matched: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Draw from each image of a batch; see torchvision."""
        positive, negative = list[Tensor](), list[Tensor]()
        for seed, of_image in zip_longest(self.seeds, matched):
            if seed is not None:
                torch.manual_seed(seed)
            drawn = super().__call__([of_image])
            positive += drawn[0]
            negative += drawn[1]
        self.positives = sum((mask.sum() for mask in positive), torch.zeros((), device=matched[0].device))
        self.drawn = self.positives + sum(mask.sum() for mask in negative)
        return positive, negative


def use_seeded_samplers(model: nn.Module) -> None:
    """Replace the samplers of a Mask R-CNN, or Faster R-CNN, by :class:`SeededSampler`."""
    parts: tuple[Any, Any] = model.get_submodule("rpn"), model.get_submodule("roi_heads")
    for part in parts:
        part.fg_bg_sampler = SeededSampler(part.fg_bg_sampler)


def seed_samplers(model: nn.Module, seed: int, step: int, images: Sequence[int]) -> None:
    """Seed the draws of a step for the images of a batch, by their indices in the data set."""
    parts: tuple[Any, Any] = model.get_submodule("rpn"), model.get_submodule("roi_heads")
    for number, part in enumerate(parts):
        keys = [np.random.SeedSequence([seed, step, index, number]) for index in images]
        part.fg_bg_sampler.seeds = [int(key.generate_state(1)[0]) for key in keys]


def weights_of_losses(model: nn.Module, masks: bool) -> Tensor:
    """Return factors of the losses of this process with which the mean over the processes is that of the whole batch.

    Each loss is a mean over what was drawn, of which processes may have different numbers: ``[5]``, or ``[4]`` without
    masks, in the order of :data:`hardpatch.detect.trainer.LOSSES`; ones in a single process.
    """
    proposals: Any = model.get_submodule("rpn")
    heads: Any = model.get_submodule("roi_heads")
    anchors, boxes = proposals.fg_bg_sampler, heads.fg_bg_sampler
    counts = [anchors.drawn, anchors.drawn, boxes.drawn, boxes.drawn]
    if masks:
        counts.append(boxes.positives if heads.known_masks is None else heads.known_masks)
    own = torch.stack([count.float() for count in counts])
    everywhere = average(own)
    return torch.where(everywhere > 0, own / everywhere.clamp(min=1e-6), 1.0)
