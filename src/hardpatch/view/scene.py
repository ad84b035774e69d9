"""Maps of an image, and a mask of it with its reconstruction, as a run sees them."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hardpatch import figures
from hardpatch.choices import MaskName, MiningName
from hardpatch.data.augment import EvalTransform
from hardpatch.data.sources import Source
from hardpatch.data.survey import adapted
from hardpatch.errors import UserError
from hardpatch.evaluate.difficulty import RunModels
from hardpatch.measure.difficulty import losses_over_masks, whole_targets
from hardpatch.measure.score import masked_patches
from hardpatch.measure.score_files import reconstructed, shown_channels
from hardpatch.methods.mining import Masking
from hardpatch.models.pixels import to_bytes
from hardpatch.patches import gather
from hardpatch.randomness import patch_noise

DRAWS = 10
"""Random masks that the true loss is averaged over."""
MAPS = {
    "whole": "difficulty predicted from the whole image",
    "masked": "difficulty predicted where a patch is masked",
    "true_loss": f"true loss over {DRAWS} random masks",
    "attention": "attention of the class token",
}
"""Maps of an image, and their titles."""
MINED_BY = {"whole": "prediction, whole image", "masked": "prediction, masked", "true_loss": "true loss"}
"""Maps that patches can be mined by, and short names of them."""


class Choice(NamedTuple):
    """Positions of the controls."""

    mask_ratio: float = 0.75
    alpha: float = 0.5
    mining: MiningName = "hard"
    mask: MaskName = "random"
    unit: int = 1
    """side, in patches, of the squares that are masked as a whole"""
    by: str = "whole"
    """map that patches are mined by, one of :data:`MINED_BY`"""
    seed: int = 0


class Seen(NamedTuple):
    """An image as a run sees it, and its maps."""

    name: str
    """of the file, without its folders"""
    pixels: Tensor
    """``[1, C, H, W]`` of the type of the run's reading"""
    targets: Tensor
    """reconstruction target of every patch, ``[1, N, T]``"""
    vector: Tensor
    """mean of the patch tokens, of length 1, ``[D]``"""
    maps: dict[str, Tensor]
    """maps of :data:`MAPS` that the run has, float32 ``[1, N]``"""
    number: int | None = None
    """of the image in the viewer's set; None for another image"""


class Masked(NamedTuple):
    """A mask, and what becomes of the image."""

    mask: NDArray[np.bool_]
    """``[N]``, True = masked"""
    mined: int
    """number of masked patches that were mined"""
    image: figures.Image
    """the image, its masked patches gray"""
    reconstruction: figures.Image | None
    """None if the run does not reconstruct pixels"""
    loss: float
    """mean reconstruction loss of the masked patches"""


class Scene:
    """A run in front of images.

    Args:
        name: of the run.
        models: of the run.
        device: of the models.
    """

    def __init__(self, name: str, models: RunModels, device: torch.device) -> None:
        self.name, self.models, self.device = name, models, device
        self.student = models.student
        self.show = shown_channels(None, self.student.reading.number)

    @property
    def default(self) -> Choice:
        """Positions of the controls that are closest to the run's training."""
        by = self.models.masking.predict if self.student.has_predictor else "true_loss"
        return Choice(mask_ratio=self.models.masking.mask_ratio, by=by)

    def read(self, source: Source, index: int) -> Tensor:
        """Return the pixels of an image, resized and cropped, ``[1, C, H, W]``; the errors are those of :meth:`see`."""
        transform = EvalTransform(self.student.image_size, adapted(self.student.reading, source, "IMAGE"))
        return transform(source.image(index, transform.reading)).unsqueeze(0).to(self.device)

    @torch.inference_mode()
    def see(self, source: Source, index: int = 0) -> Seen:
        """Return an image of a source and its maps.

        Raises:
            UndecodableImage: if the image cannot be decoded.
            UserError: if it has other channels than the run, or a value is not finite.
        """
        student, (_, teacher, target, _) = self.student, self.models
        pixels = self.read(source, index)
        images, indices = student.normalize(pixels), torch.tensor([index], device=self.device)
        output = teacher.forward_whole(images, difficulty=student.has_predictor, attention=True)
        targets = whole_targets(student, target, pixels, images, output)
        masked = masked_patches(student, self.models.masking.mask_ratio, DRAWS)
        counts: dict[str, Any] = {"masked": masked, "draws": DRAWS, "seed": 0, "predict": student.has_predictor}
        losses = losses_over_masks(student, images, indices, targets, **counts)
        found = {
            "whole": output.difficulty,
            "masked": losses.predicted,
            "true_loss": losses.true_loss,
            "attention": output.attention,
        }
        maps = {name: values.float() for name, values in found.items() if values is not None}
        if not all(bool(values.isfinite().all()) for values in maps.values()):
            raise UserError(f"{self.name}: expected finite losses, got NaN or infinity; its training diverged")
        vector = torch.nn.functional.normalize(student.encode(images)[0, 1:].float().mean(dim=0), dim=0)
        return Seen(Path(source.name(index)).name, pixels, targets, vector, maps)

    @torch.inference_mode()
    def mask(self, seen: Seen, choice: Choice) -> Masked:
        """Mask an image, and reconstruct it.

        Raises:
            UserError: if the run has no such mask.
        """
        student = self.student
        rows, columns = student.grid
        if rows % choice.unit or columns % choice.unit:
            raise UserError(f"squares of {choice.unit} patches do not fit a grid of {rows} x {columns}")
        masking = Masking(student.grid, choice.mask, choice.mining, choice.unit)
        noise = patch_noise(choice.seed, 0, torch.zeros(1, dtype=torch.int64, device=self.device), masking.noise_count)
        difficulty = seen.maps.get(choice.by)
        alpha = choice.alpha if difficulty is not None else 0.0
        ways: dict[str, Any] = {"difficulty": difficulty, "attention": seen.maps.get("attention")}
        try:
            mined = masking.mine_mask(noise, mask_ratio=choice.mask_ratio, alpha=alpha, **ways)
        except ValueError as error:
            raise UserError(str(error)) from None
        patches = mined.mask
        prediction = student.predict(student.normalize(seen.pixels), patches, with_loss=False).prediction  # [1, M, T]
        loss = student.reconstruction_loss(prediction, gather(seen.targets, patches.masked))
        mask = np.zeros(rows * columns, dtype=bool)
        mask[patches.masked[0].cpu().numpy()] = True
        count = 0 if mined.mined is None else int(mined.mined.sum())
        image = self._bytes(seen.pixels)
        prediction_of_masked = prediction[0].float().cpu().numpy()
        reconstruction = reconstructed(student, image, prediction_of_masked, mask)
        return Masked(
            mask,
            count,
            self._shown(figures.masked_image(image, mask, student.grid)),
            None if reconstruction is None else self._shown(reconstruction),
            float(loss.mean()),
        )

    def picture(self, pixels: Tensor) -> figures.Image:
        """Draw an image ``[1, C, H, W]`` of the type of the run's reading, as the run sees it."""
        return self._shown(self._bytes(pixels))

    def heat_map(self, seen: Seen, name: str) -> figures.Image:
        """Draw a map over the gray image."""
        image = figures.enlarge(self.picture(seen.pixels))
        return figures.heat_map(image, seen.maps[name][0].cpu().numpy(), self.student.grid)

    def _bytes(self, pixels: Tensor) -> figures.Image:
        """Return the image with all channels, uint8 ``[H, W, C]``."""
        image: figures.Image = to_bytes(pixels, self.student)[0].permute(1, 2, 0).cpu().numpy()
        return image

    def _shown(self, image: figures.Image) -> figures.Image:
        return figures.to_rgb(image if self.show is None else image[..., list(self.show)])
