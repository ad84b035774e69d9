"""Color augmentation of uint8 images: jitter, gray, blur and solarization."""

from dataclasses import dataclass

import numpy as np

from hardpatch.data.crop import Image

BLUR_SIGMA = (0.1, 2.0)
"""Range of the standard deviation of the blur in pixels."""


@dataclass(frozen=True)
class ColorTransform:
    """Jitter, gray, blur and solarization, each with a probability, in this order (BYOL's, as DINO and iBOT use it).

    `strength` is that of the jitter: brightness, contrast and saturation are multiplied by a factor in 1 +- strength,
    the hue is turned by up to +- strength of a circle; the four come in random order. The blur is Gaussian with a
    standard deviation between 0.1 and 2 pixels. Images of one channel have no saturation or hue and are gray already.

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

    def __call__(self, image: Image, rng: np.random.Generator) -> Image:
        """Change the colors of uint8 [H, W, C], C being 1 or 3; the shape stays."""
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


MULTI_CROP_COLORS = (
    ColorTransform(jitter=0.8, gray=0.2, blur=1.0),
    ColorTransform(jitter=0.8, gray=0.2, blur=0.1, solarize=0.2),
    ColorTransform(jitter=0.8, gray=0.2, blur=0.5),
)
"""Colors of the first global view, of the second, and of the local views in DINO and iBOT."""
