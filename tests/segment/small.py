"""Small sets of images with label maps, and a network for them."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from hardpatch.models.encoder import Encoder
from hardpatch.segment.labels import Labels
from hardpatch.segment.model import UperNet

THREE = Labels(("sky", "road", "car"), (0, 1, 2))


def write_pair(images: Path, labels: Path, stem: str, values: np.ndarray, ending: str = ".png") -> None:
    """Write an image whose pixels are 20 times its labels, and its label map."""
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    values = values.astype(np.uint8)
    Image.fromarray(np.repeat((20 * values)[..., None], 3, axis=2)).save(images / f"{stem}{ending}")
    Image.fromarray(values).save(labels / f"{stem}.png")


def blocks(seed: int = 0, height: int = 24, width: int = 32, classes: int = 3) -> np.ndarray:
    """Label map of 8-pixel squares."""
    squares = np.random.default_rng(seed).integers(0, classes, (height // 8, width // 8))
    return squares.repeat(8, axis=0).repeat(8, axis=1)


def small_upernet(positions: str = "sincos", classes: int = 5, dropout: float = 0.0, depth: int = 4) -> UperNet:
    """UperNet on ``depth`` blocks of width 32, with patches of 4 px."""
    torch.manual_seed(0)
    encoder = Encoder(
        image_size=(16, 24),
        patch_size=4,
        width=32,
        depth=depth,
        heads=2,
        positions="relative" if positions == "relative" else "sincos",
        drop_masked=positions != "relative",
    )
    return UperNet(encoder, classes, mean=[0.4] * 3, std=[0.2] * 3, channels=16, dropout=dropout)


def random_norms(module: nn.Module) -> None:
    """Randomize batch norms, which are the identity at first."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            assert part.running_mean is not None
            assert part.running_var is not None
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
            nn.init.normal_(part.running_mean)
            nn.init.uniform_(part.running_var, 0.5, 2.0)
