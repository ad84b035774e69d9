"""Model whose difficulty and loss are known, and pictures for it."""

from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from hardpatch.methods import targets
from hardpatch.methods.hpm import HPM, StudentOutput
from hardpatch.methods.losses import pixel_loss
from hardpatch.methods.teacher import TeacherOutput
from hardpatch.models.pixels import register_normalization
from hardpatch.patches import PatchIndices, patchify, to_indices


class BrightnessModel(nn.Module):
    """Model that predicts the brightness of a patch as its difficulty, and is right: it reconstructs black.

    Images have 16 px, patches 4. As a student it predicts the negative brightness.
    """

    patch_size, grid, image_size = 4, (4, 4), (16, 16)
    reconstructs_pixels = True

    def __init__(self, sign: float = 1.0, *, has_predictor: bool = True) -> None:
        super().__init__()
        self.host = self
        self.sign, self.has_predictor = sign, has_predictor
        register_normalization(self, [0.0] * 3, [1.0] * 3)
        self.masks: list[Tensor] = []

    def normalize(self, images: Tensor) -> Tensor:
        return images.float() / 255

    def forward_whole(self, images: Tensor, *, difficulty: bool = True) -> TeacherOutput:
        assert self.has_predictor or not difficulty
        predicted = self.sign * patchify(images, 4).mean(dim=-1) if difficulty else None
        return TeacherOutput(torch.zeros(len(images), 17, 2), predicted, None)

    def predict(self, images: Tensor, mask: PatchIndices, *, with_loss: bool = True) -> StudentOutput:
        assert self.has_predictor or not with_loss
        latent = self.encode(images, mask)
        predicted = -self.sign * patchify(images, 4).mean(dim=-1).gather(1, mask.masked)
        return StudentOutput(latent, self.reconstruct(latent, mask), predicted if with_loss else None)

    def encode(self, images: Tensor, mask: Tensor | PatchIndices) -> Tensor:
        self.masks.append(to_indices(mask).masked)
        return torch.zeros(len(images), 1 + to_indices(mask).visible.shape[1], 2)

    def reconstruct(self, latent: Tensor, mask: Tensor | PatchIndices) -> Tensor:
        return torch.zeros(*to_indices(mask).masked.shape, 48)

    def target(self, images: Tensor) -> Tensor:
        return targets.pixels(images, 4)

    def reconstruction_loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        return pixel_loss(prediction, target)


def brightness_model(sign: float = 1.0, *, has_predictor: bool = True) -> HPM:
    return cast(HPM, BrightnessModel(sign, has_predictor=has_predictor))


def gray_patches(size: tuple[int, int] = (16, 16), seed: int = 0) -> np.ndarray:
    """Draw a picture of uniform 4-px patches, each of another gray."""
    grays = np.random.default_rng(seed).permutation(size[0] * size[1] // 16).reshape(size[0] // 4, -1)
    return np.kron(grays.astype(np.uint8), np.full((4, 4), 7, dtype=np.uint8))[..., None].repeat(3, axis=-1)


def left_half(size: tuple[int, int] = (16, 16)) -> np.ndarray:
    """Mask the left half, with zeros and ones instead of 0 and 255."""
    mask = np.zeros(size, dtype=np.uint8)
    mask[:, : size[1] // 2] = 1
    return mask


def write_pictures(folder: Path, pictures: dict[str, np.ndarray]) -> Path:
    """Write pictures by file name below ``folder``. Returns the folder."""
    for name, picture in pictures.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / name)
    return folder
