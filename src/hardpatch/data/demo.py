"""The embedded demo set: a bright handwritten digit on a darkened crop of a photograph, 32 x 32 RGB.

It is composed in memory from files of scikit-image and scikit-learn, so nothing is downloaded. The class is the digit.
The mask says where the digit is, so that predicted difficulty can be compared with it. Training and test images share
neither a drawing of a digit nor a region of a photograph, and are the same on every call.
"""

import functools
import gzip
import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hardpatch.data.left_out import LeftOut
from hardpatch.data.reading import RGB, Pixels, Reading, arranged
from hardpatch.errors import UserError

SIZE = 32
IMAGES = {"train": 4000, "test": 1000}
# photographs in scikit-image's wheel: natural and rather smooth, so that the digit is the hard part of an image
PHOTOGRAPHS = (
    "astronaut.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "moon.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
PHOTOGRAPH_SIDE = 512  # longer side to which photographs are shrunk
TRAIN_WIDTH = 0.7  # share of a photograph, from the left, that is for training; the rest is for testing
CROP_SIDE = (16, 48)  # side of the background in the photograph in pixels, log-uniform
DIGIT_HEIGHT = (25.0, 28.0)  # pixels, uniform
STRETCH = (0.96, 1.04)  # factor of the width, uniform
ROTATION = 3.0  # largest angle in degrees, either way
JITTER = 0.3  # offset from the center, as a share of the free space around the digit
INK = 0.42  # ink at which alpha is a half
EDGE = 12.0  # steepness of the glyph's edge: alpha = sigmoid(EDGE * (ink - INK))
SHADE = 0.4  # factor of the brightness of the photograph
BRIGHT = 0.85  # least value of each channel of a digit's color, in [0, 1]
TEST_DIGIT_EVERY = 4  # one drawing in four is for testing


class DemoSource:
    """One half of the embedded set; see :class:`~hardpatch.data.sources.Source`. `mask(i)` says where the digit is."""

    def __init__(
        self,
        split: str,
        images: npt.NDArray[np.uint8],
        labels: npt.NDArray[np.int64],
        masks: npt.NDArray[np.bool_],
    ) -> None:
        self.split = split
        self.classes: tuple[str, ...] | None = tuple("0123456789")
        self.skipped: tuple[LeftOut, ...] = ()
        self.notes: list[str] = []
        self.unlabeled = ""
        self._images, self._labels, self._masks = images, labels, masks

    def __len__(self) -> int:
        return len(self._images)

    def name(self, i: int) -> str:
        """Name of image i in messages."""
        return f"demo:{self.split}/{i:05d}"

    def image(self, i: int, reading: Reading = RGB) -> Pixels:
        """Return a copy of image i, [32, 32, channels]."""
        return arranged(self._images[i].copy(), reading)

    def encoded(self, i: int) -> None:
        """Return None: the images are pixels."""
        return

    def label(self, i: int) -> int | None:
        """Return the digit of image i."""
        return int(self._labels[i])

    def files(self) -> Iterator[str]:
        """Yield nothing: the images are made in memory."""
        yield from ()

    def mask(self, i: int) -> npt.NDArray[np.bool_]:
        """Return the mask of image i, bool [32, 32], True on the digit."""
        return self._masks[i]


@functools.cache
def demo_source(split: str) -> DemoSource:
    """Compose the half "train" or "test", in about a second on the first call; later calls return the same source."""
    if split not in IMAGES:
        raise UserError(f"demo:{split}: no such half of the embedded set; expected demo:train or demo:test")
    n = IMAGES[split]
    rng = np.random.default_rng([2023, list(IMAGES).index(split)])
    photographs = _photographs(split)
    inks, digits = _drawings(split)

    drawings = rng.permutation(np.resize(np.arange(len(digits)), n))  # every drawing about equally often
    alpha = _render_digits(inks[drawings], rng)  # [n, 32, 32]
    backgrounds = rng.integers(len(photographs), size=n)
    background = SHADE * _crops(photographs, backgrounds, rng)  # [n, 32, 32, 3] in [0, 1]
    color = BRIGHT + (1 - BRIGHT) * rng.random((n, 1, 1, 3))
    images = background + alpha[..., None] * (color - background)
    return DemoSource(split, (images * 255 + 0.5).astype(np.uint8), digits[drawings], alpha > 0.5)


def _photographs(split: str) -> list[npt.NDArray[np.uint8]]:
    """Load the region of each photograph that belongs to the split, uint8 [H, W, 3]."""
    from PIL import Image

    folder = _package("skimage") / "data"
    regions = []
    for name in PHOTOGRAPHS:
        with Image.open(folder / name) as file:
            photograph = file.convert("RGB")
        photograph.thumbnail((PHOTOGRAPH_SIDE, PHOTOGRAPH_SIDE), Image.Resampling.BICUBIC)
        border = round(photograph.width * TRAIN_WIDTH)
        left, right = (0, border) if split == "train" else (border, photograph.width)
        regions.append(np.asarray(photograph)[:, left:right])
    return regions


def _package(name: str) -> Path:
    """Find the folder of an installed package without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise UserError(f"demo: the embedded set is made from files of {name}, which is not installed")
    return Path(spec.origin).parent


def _drawings(split: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Load the drawings of the split: ink in [0, 1], float32 [D, 8, 8], and digits, int64 [D]."""
    # the file of sklearn.datasets.load_digits, without the seconds that importing scikit-learn takes
    with gzip.open(_package("sklearn") / "datasets" / "data" / "digits.csv.gz", "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    testing = np.arange(len(table)) % TEST_DIGIT_EVERY == TEST_DIGIT_EVERY - 1
    rows = table[testing if split == "test" else ~testing]
    return rows[:, :-1].reshape(-1, 8, 8) / 16, rows[:, -1].astype(np.int64)


def _render_digits(inks: npt.NDArray[np.float32], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Draw each 8 x 8 glyph, smoothly enlarged and slightly rotated, at a random position: alpha [n, 32, 32]."""
    import torch
    import torch.nn.functional as F

    n = len(inks)
    padded = np.pad(inks, ((0, 0), (1, 1), (1, 1)))
    glyphs = F.interpolate(torch.from_numpy(padded)[:, None], size=(40, 40), mode="bicubic")
    height = rng.uniform(*DIGIT_HEIGHT, size=n)
    width = height * rng.uniform(*STRETCH, size=n)
    angle = np.deg2rad(rng.uniform(-ROTATION, ROTATION, size=n))
    # the 8 x 8 cells stay within the image; the padding, which has no ink, may lie outside
    free_x, free_y = np.maximum(SIZE - width, 0) / 2, np.maximum(SIZE - height, 0) / 2
    x, y = JITTER * rng.uniform(-free_x, free_x), JITTER * rng.uniform(-free_y, free_y)
    # affine_grid takes the map from the image to the glyph, both over [-1, 1]
    scale_x, scale_y = SIZE / (width * 10 / 8), SIZE / (height * 10 / 8)
    cos, sin = np.cos(angle), np.sin(angle)
    shift_x, shift_y = -2 * x / SIZE, -2 * y / SIZE
    theta = np.empty((n, 2, 3), dtype=np.float32)
    theta[:, 0] = np.stack([scale_x * cos, scale_x * sin, scale_x * (cos * shift_x + sin * shift_y)], axis=1)
    theta[:, 1] = np.stack([-scale_y * sin, scale_y * cos, scale_y * (-sin * shift_x + cos * shift_y)], axis=1)
    grid = F.affine_grid(torch.from_numpy(theta), [n, 1, SIZE, SIZE], align_corners=False)
    ink = F.grid_sample(glyphs, grid, mode="bilinear", align_corners=False)[:, 0]
    alpha = torch.sigmoid(EDGE * (ink - INK))
    return torch.where(ink > 0.05, alpha, 0).numpy()


def _crops(
    photographs: list[npt.NDArray[np.uint8]], indices: npt.NDArray[np.int64], rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """Cut a random square out of the photograph at each index: float32 [n, 32, 32, 3] in [0, 1]."""
    from PIL import Image

    pictures = [Image.fromarray(photograph) for photograph in photographs]
    sides = np.exp(rng.uniform(math.log(CROP_SIDE[0]), math.log(CROP_SIDE[1]), size=len(indices)))
    corners = rng.random((len(indices), 2))
    crops = np.empty((len(indices), SIZE, SIZE, 3), dtype=np.uint8)
    for k, (index, side, (x, y)) in enumerate(zip(indices, sides, corners, strict=True)):
        picture = pictures[index]
        side = min(side, picture.width, picture.height)
        left, top = x * (picture.width - side), y * (picture.height - side)
        box = (left, top, left + side, top + side)
        crops[k] = np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box))
    return (crops / 255).astype(np.float32)
