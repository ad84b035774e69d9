"""The embedded set: one bright handwritten digit on a darkened crop of a real photograph, 32 x 32 RGB.

Composed in memory from what scikit-image and scikit-learn bring along, so nothing is downloaded. The class is the
digit; the mask says where it is, so that predicted difficulty can be held against it. Training and test images share
neither a digit's drawing nor a region of a photograph, and are the same on every call.
"""

import functools
import gzip
import importlib.util
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hardpatch.data.decode import check_channels
from hardpatch.errors import UserError

SIZE = 32
IMAGES = {"train": 4000, "test": 1000}
# photographs inside scikit-image's wheel; natural and rather smooth, so that the digit is what is hard to predict
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
PHOTOGRAPH_SIDE = 512  # photographs are shrunk to this longer side
TRAIN_WIDTH = 0.7  # the left of a photograph is for training, the rest for testing
CROP_SIDE = (16, 48)  # pixels of the photograph that become the 32 of the background, log-uniform
DIGIT_HEIGHT = (25.0, 28.0)  # pixels, uniform
STRETCH = (0.96, 1.04)  # width over height beside the drawing's own
TURN = 3.0  # degrees either way
JITTER = 0.3  # share of the room around a digit that its place makes use of
INK = 0.42  # alpha is a half where the drawing has this much ink
EDGE = 12.0  # steepness of the glyph's edge: alpha = sigmoid(EDGE * (ink - INK))
SHADE = 0.4  # brightness of the photograph behind the digit
BRIGHT = 0.85  # least brightness of each channel of a digit's color, of 1
TEST_DIGIT_EVERY = 4  # every fourth drawing is for testing


class DemoSource:
    """One half of the embedded set; `mask(i)` says where the digit is."""

    def __init__(
        self,
        split: str,
        images: npt.NDArray[np.uint8],
        labels: npt.NDArray[np.int64],
        masks: npt.NDArray[np.bool_],
    ) -> None:
        self.split = split
        self.classes: tuple[str, ...] | None = tuple("0123456789")
        self.skipped: tuple[str, ...] = ()
        self._images, self._labels, self._masks = images, labels, masks

    def __len__(self) -> int:
        return len(self._images)

    def name(self, i: int) -> str:
        return f"demo:{self.split}/{i:05d}"

    def image(self, i: int, channels: int) -> npt.NDArray[np.uint8]:
        """uint8 [32, 32, channels], a copy."""
        check_channels(channels)
        if channels == 3:
            return self._images[i].copy()
        return (self._images[i] @ np.array([0.299, 0.587, 0.114]) + 0.5).astype(np.uint8)[:, :, None]

    def encoded(self, i: int) -> None:
        return None

    def label(self, i: int) -> int | None:
        return int(self._labels[i])

    def mask(self, i: int) -> npt.NDArray[np.bool_]:
        """bool [32, 32], True on the digit."""
        return self._masks[i]


@functools.cache
def demo_source(split: str) -> DemoSource:
    """The half "train" or "test"; composed on the first call in about a second, then kept."""
    if split not in IMAGES:
        raise UserError(f"demo:{split}: no such half of the embedded set; expected demo:train or demo:test")
    n = IMAGES[split]
    rng = np.random.default_rng([2023, list(IMAGES).index(split)])
    photographs = _photographs(split)
    inks, digits = _drawings(split)

    which = rng.permutation(np.resize(np.arange(len(digits)), n))  # every drawing about as often as any other
    alpha = _place(inks[which], rng)  # [n, 32, 32]
    pick = rng.integers(len(photographs), size=n)
    background = SHADE * _crops(photographs, pick, rng)  # [n, 32, 32, 3] in [0, 1]
    fill = BRIGHT + (1 - BRIGHT) * rng.random((n, 1, 1, 3))
    images = background + alpha[..., None] * (fill - background)
    return DemoSource(split, (images * 255 + 0.5).astype(np.uint8), digits[which], alpha > 0.5)


def _photographs(split: str) -> list[npt.NDArray[np.uint8]]:
    """The split's region of each photograph, uint8 [H, W, 3]."""
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
    """The folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise UserError(f"demo: the embedded set is made from what {name} brings along, which is not installed")
    return Path(spec.origin).parent


def _drawings(split: str) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Ink in [0, 1], float32 [D, 8, 8], and the digit, int64 [D], of the split's drawings."""
    # what sklearn.datasets.load_digits reads, without the seconds that importing scikit-learn takes
    with gzip.open(_package("sklearn") / "datasets" / "data" / "digits.csv.gz", "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.float32)
    testing = np.arange(len(table)) % TEST_DIGIT_EVERY == TEST_DIGIT_EVERY - 1
    ours = table[testing if split == "test" else ~testing]
    return ours[:, :-1].reshape(-1, 8, 8) / 16, ours[:, -1].astype(np.int64)


def _place(inks: npt.NDArray[np.float32], rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Draw each 8 x 8 glyph, enlarged smoothly, turned a little and whole, at a random place: alpha [n, 32, 32]."""
    import torch
    import torch.nn.functional as F

    n = len(inks)
    padded = np.pad(inks, ((0, 0), (1, 1), (1, 1)))
    glyphs = F.interpolate(torch.from_numpy(padded)[:, None], size=(40, 40), mode="bicubic")
    high = rng.uniform(*DIGIT_HEIGHT, size=n)
    wide = high * rng.uniform(*STRETCH, size=n)
    turn = np.deg2rad(rng.uniform(-TURN, TURN, size=n))
    # a place for the glyph's 8 x 8 cells; its padding, which holds no ink, may lie outside
    room_x, room_y = np.maximum(SIZE - wide, 0) / 2, np.maximum(SIZE - high, 0) / 2
    x, y = JITTER * rng.uniform(-room_x, room_x), JITTER * rng.uniform(-room_y, room_y)
    # grid_sample wants the map from the canvas to the glyph, both over [-1, 1]
    to_x, to_y = SIZE / (wide * 10 / 8), SIZE / (high * 10 / 8)
    cos, sin = np.cos(turn), np.sin(turn)
    shift_x, shift_y = -2 * x / SIZE, -2 * y / SIZE
    theta = np.empty((n, 2, 3), dtype=np.float32)
    theta[:, 0] = np.stack([to_x * cos, to_x * sin, to_x * (cos * shift_x + sin * shift_y)], axis=1)
    theta[:, 1] = np.stack([-to_y * sin, to_y * cos, to_y * (-sin * shift_x + cos * shift_y)], axis=1)
    grid = F.affine_grid(torch.from_numpy(theta), [n, 1, SIZE, SIZE], align_corners=False)
    ink = F.grid_sample(glyphs, grid, mode="bilinear", align_corners=False)[:, 0]
    alpha = torch.sigmoid(EDGE * (ink - INK))
    return torch.where(ink > 0.05, alpha, 0).numpy()


def _crops(
    photographs: list[npt.NDArray[np.uint8]], pick: npt.NDArray[np.int64], rng: np.random.Generator
) -> npt.NDArray[np.float32]:
    """A square of each picked photograph, of random side and place, as float32 [n, 32, 32, 3] in [0, 1]."""
    from PIL import Image

    files = [Image.fromarray(photograph) for photograph in photographs]
    sides = np.exp(rng.uniform(math.log(CROP_SIDE[0]), math.log(CROP_SIDE[1]), size=len(pick)))
    places = rng.random((len(pick), 2))
    out = np.empty((len(pick), SIZE, SIZE, 3), dtype=np.uint8)
    for k, (which, side, (x, y)) in enumerate(zip(pick, sides, places, strict=True)):
        file = files[which]
        side = min(side, file.width, file.height)
        left, top = x * (file.width - side), y * (file.height - side)
        box = (left, top, left + side, top + side)
        out[k] = np.asarray(file.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=box))
    return (out / 255).astype(np.float32)
