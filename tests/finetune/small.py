"""A classifier small enough to run hundreds of times."""

import torch

from hardpatch.finetune.model import Classifier
from hardpatch.models.encoder import Encoder


def small_classifier(classes: int = 3, relative: bool = False, image_size: tuple[int, int] | None = None) -> Classifier:
    """Build a classifier of three blocks of 32, for images of 16 x 24 pixels in patches of 4."""
    torch.manual_seed(0)
    encoder = Encoder(
        image_size=(16, 24),
        patch_size=4,
        width=32,
        depth=3,
        heads=2,
        drop_masked=not relative,
        positions="relative" if relative else "sincos",
        layer_scale=0.1 if relative else None,
    )
    return Classifier(encoder, classes, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), image_size=image_size, drop_path=0.2)
