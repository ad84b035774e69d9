"""Numbers of the images of a batch: difficulty, true loss over fixed masks, signature and thumbnail."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hardpatch.data.batch import Batch
from hardpatch.evaluate.difficulty import RunModels
from hardpatch.measure.difficulty import PatchDifficulty, patch_difficulty, whole_targets
from hardpatch.methods.encoder_only import EncoderOnly
from hardpatch.models.pixels import to_bytes
from hardpatch.patches import all_masked
from hardpatch.rank.parts import Columns
from hardpatch.rank.signature import signatures, thumbnails


@dataclass(frozen=True)
class FixedMasks:
    """Random masks that are the same for every image and together cover all patches."""

    masked: int
    """patches in a mask"""
    draws: int
    """number of masks"""
    seed: int


def losses(models: RunModels, pixels: Tensor, masks: FixedMasks) -> PatchDifficulty:
    """Predicted difficulty, if there is a predictor, and true loss of every patch, ``[B, N]``.

    Args:
        models: of the run, with a decoder.
        pixels: ``[B, C, H, W]``, on the device of the models.
        masks: those of the true loss.
    """
    return patch_difficulty(
        models.student,
        models.teacher,
        pixels,
        torch.zeros(len(pixels), dtype=torch.int64, device=pixels.device),  # which draw the masks, for all the same
        masked=masks.masked,
        draws=masks.draws,
        seed=masks.seed,
        predict=models.masking.predict,
        target=models.target,
    )


def has_decoder(models: RunModels) -> bool:
    """Return whether a run has a true loss."""
    return not isinstance(models.student.host, EncoderOnly)


class ImageMeasure:
    """Measure of the images of a batch, for :func:`~hardpatch.rank.stream.measure_all`.

    Args:
        models: of the run.
        masks: those of the true loss; None for weights without a decoder.
        device: where the models are.
    """

    def __init__(self, models: RunModels, masks: FixedMasks | None, device: torch.device) -> None:
        self.models, self.masks, self.device = models, masks, device

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Columns:
        """Return a row for each image."""
        student, pixels = self.models.student, batch.images.to(self.device)
        columns = {
            "index": batch.indices.numpy(),
            "signature": signatures(student, student.normalize(pixels)).flatten(1).cpu().numpy(),
            "thumbnail": thumbnails(to_bytes(pixels, student)).cpu().numpy(),
        }
        if self.masks is not None:
            found = losses(self.models, pixels, self.masks)
            columns["loss"] = _means(found.true_loss)
            if found.predicted is not None:
                columns["difficulty"] = _means(found.predicted)
        return columns


def _means(values: Tensor) -> NDArray[np.float64]:
    """Means over the patches, float64 ``[B]``."""
    return values.double().mean(1).cpu().numpy()


class PatchMeasure:
    """Measure of the patches of images in a batch, for :func:`~hardpatch.rank.stream.measure_all`.

    Args:
        models: of the run, with a decoder.
        masks: those of the loss.
        device: where the models are.
        whole: also measure the error of a reconstruction for which nothing is masked, as a baseline.
    """

    def __init__(self, models: RunModels, masks: FixedMasks, device: torch.device, *, whole: bool) -> None:
        self.models, self.masks, self.device, self.whole = models, masks, device, whole

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Columns:
        """Return a row for each image, with a column of the losses of its patches."""
        pixels = batch.images.to(self.device)
        columns = {"index": batch.indices.numpy()}
        columns["loss"] = losses(self.models, pixels, self.masks).true_loss.cpu().numpy()
        if self.whole:
            columns["whole"] = self._whole(pixels).cpu().numpy()
        return columns

    def _whole(self, pixels: Tensor) -> Tensor:
        """Error of the reconstruction of every patch from all of them, float32 ``[B, N]``."""
        student, target = self.models.student, self.models.target
        images, patches = student.normalize(pixels), student.grid[0] * student.grid[1]
        latent = student.encode(images)
        mask = all_masked(len(images), patches, images.device)
        prediction = student.host.reconstruct(latent, student.host.decoder_tokens(latent), mask)
        output = None if target is None else self.models.teacher.forward_whole(images, difficulty=False)
        targets = whole_targets(student, target, pixels, images, output)
        return student.reconstruction_loss(prediction, targets).float()
