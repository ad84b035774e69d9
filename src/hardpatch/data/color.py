"""Color augmentation: jitter, gray, blur and solarization."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hardpatch.data.crop import Image
from hardpatch.data.reading import LUMA, RGB, Reading, from_unit, to_unit

Values = npt.NDArray[np.float32]
"""Pixels [H, W, C] in [0, 1]."""
BLUR_SIGMA = (0.1, 2.0)
"""Range of the standard deviation of the blur in pixels."""


@dataclass(frozen=True)
class ColorTransform:
    """Jitter, gray, blur and solarization, each with a probability, in this order (BYOL's, as DINO and iBOT use it).

    `strength` is that of the jitter: brightness, contrast and saturation are multiplied by a factor in 1 +- strength,
    the hue is turned by up to +- strength of a circle; the four come in random order. The blur is Gaussian with a
    standard deviation between 0.1 and 2 pixels. Images that are not RGB have no saturation or hue, and stay as they are
    where others turn gray.

    Raises ValueError for a probability or a strength outside [0, 1], and a hue beyond 0.5.
    """

    jitter: float = 0.0
    strength: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    gray: float = 0.0
    blur: float = 0.0
    solarize: float = 0.0

    def __post_init__(self) -> None:
        for name in ("jitter", "gray", "blur", "solarize"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}: expected a probability in [0, 1], got {getattr(self, name)}")
        if not all(0 <= strength <= most for strength, most in zip(self.strength, (1, 1, 1, 0.5), strict=True)):
            raise ValueError(
                "strength: expected brightness, contrast and saturation in [0, 1] and hue in [0, 0.5], "
                f"got {self.strength}"
            )

    def __call__(self, image: Image, rng: np.random.Generator, reading: Reading = RGB) -> Image:
        """Change the colors of [H, W, C]; shape and type stay."""
        if image.dtype == np.uint8 and image.shape[2] in (1, 3):
            return self._photograph(image, rng)
        return from_unit(self._deep(to_unit(image, reading), rng), reading)

    def _photograph(self, image: Image, rng: np.random.Generator) -> Image:
        """Change the colors of uint8 [H, W, C], C being 1 or 3."""
        from PIL import Image as Pillow
        from PIL import ImageFilter
        from torchvision.transforms.v2 import functional  # type: ignore[import-untyped]

        colored = image.shape[2] > 1
        # On Pillow images these compute what the reference implementations do, and are no slower than on tensors.
        picture = Pillow.fromarray(image if colored else image[:, :, 0])
        if rng.random() < self.jitter:
            brightness, contrast, saturation, hue = rng.uniform(-1, 1, 4) * self.strength
            steps = (
                (functional.adjust_brightness, 1 + brightness),
                (functional.adjust_contrast, 1 + contrast),
                (functional.adjust_saturation, 1 + saturation),
                (functional.adjust_hue, hue),
            )
            for k in rng.permutation(4):
                if self.strength[k] and (colored or k < 2):
                    adjust, amount = steps[k]
                    picture = adjust(picture, amount)
        if rng.random() < self.gray and colored:
            picture = functional.rgb_to_grayscale(picture, num_output_channels=3)
        if rng.random() < self.blur:
            picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(*BLUR_SIGMA)))
        if rng.random() < self.solarize:
            picture = functional.solarize(picture, threshold=128)
        return np.array(picture).reshape(image.shape)

    def _deep(self, values: Values, rng: np.random.Generator) -> Values:
        """Change the colors of float32 [H, W, C] in [0, 1], as :meth:`_photograph` does within rounding.

        Only RGB has saturation and hue. The mean gray of other images, for the contrast, is that of all channels.
        """
        from scipy.ndimage import gaussian_filter
        from skimage.color import hsv2rgb, rgb2hsv

        colored = values.shape[2] == 3

        def gray(image: Values) -> Values:
            return (image @ np.array(LUMA, np.float32))[..., None] if colored else image

        def brighter(image: Values, factor: float) -> Values:
            return image * factor

        def contrasted(image: Values, factor: float) -> Values:
            return np.asarray(gray(image).mean() * (1 - factor) + image * factor, np.float32)

        def saturated(image: Values, factor: float) -> Values:
            return gray(image) * (1 - factor) + image * factor

        def turned(image: Values, amount: float) -> Values:
            hsv = rgb2hsv(image)
            hsv[..., 0] = (hsv[..., 0] + amount) % 1
            return np.asarray(hsv2rgb(hsv), np.float32)

        if rng.random() < self.jitter:
            brightness, contrast, saturation, hue = rng.uniform(-1, 1, 4) * self.strength
            steps = ((brighter, 1 + brightness), (contrasted, 1 + contrast), (saturated, 1 + saturation), (turned, hue))
            for k in rng.permutation(4):
                if self.strength[k] and (colored or k < 2):
                    adjust, amount = steps[k]
                    values = adjust(values, float(amount)).clip(0, 1)
        if rng.random() < self.gray and colored:
            values = np.repeat(gray(values), 3, axis=2)
        if rng.random() < self.blur:
            values = gaussian_filter(values, rng.uniform(*BLUR_SIGMA), axes=(0, 1))
        if rng.random() < self.solarize:
            values = np.where(values >= 0.5, 1 - values, values)
        return values


MULTI_CROP_COLORS = (
    ColorTransform(jitter=0.8, gray=0.2, blur=1.0),
    ColorTransform(jitter=0.8, gray=0.2, blur=0.1, solarize=0.2),
    ColorTransform(jitter=0.8, gray=0.2, blur=0.5),
)
"""Colors of the first global view, of the second, and of the local views in DINO and iBOT."""
