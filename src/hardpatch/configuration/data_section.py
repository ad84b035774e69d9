"""Settings of the images of a pre-training run.

This module imports NumPy and torch in its methods only, so that ``--help`` is fast.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hardpatch.choices import PagesName, ShuffleName
from hardpatch.data.limits import MAX_PIXELS
from hardpatch.ranges import (
    ANY,
    FRACTION,
    HUGE,
    IMAGES_OR_NONE,
    PAIR_OF_RATIOS,
    PAIR_OF_SHARES,
    SHRINK,
    SIDE,
    WORKERS,
    Range,
    ranged,
)

READING = ("channels", "pages", "bands", "background", "max_pixels", "image_column", "label_column", "max_bad_fraction")
"""Settings that say how images are read, and how many may be broken; ``check`` and ``stats`` have them, too."""

if TYPE_CHECKING:
    from hardpatch.data.columns import Columns


@dataclass(frozen=True)
class DataConfig:
    """Training images and their augmentation."""

    path: list[str] | str | None = None
    """Images: a folder or tree, Parquet, CSV, .zip or .tar, a pattern, a list of these; null is the embedded set."""
    image_column: str | None = None
    """Column of the images in Parquet and CSV files; null finds it."""
    label_column: str | None = None
    """Column of the labels, which pre-training does not use; null finds it."""
    image_size: int | tuple[int, int] = ranged(224, SIDE)
    """Side of the crops in pixels, or [height, width]."""
    channels: Literal["auto"] | int | list[int] = ranged("auto", Range(0, 65_535, whole=True))
    """Channels: auto takes what the images have; 3 is RGB and 1 gray, which are converted; or indices as [3, 2, 1]."""
    range: Literal["auto", "type"] | list[float] | list[list[float]] = ranged("auto", Range(-1e38, 1e38, ordered="<"))
    """Values that become 0 and 1: auto measures images of more than 8 bits, type is the type's, or [low, high]."""
    pages: PagesName = "error"
    """Files of several pages or frames: refuse them, read the first, all as images, or pages as channels."""
    bands: list[str] | None = None
    """Patterns of the files of each band where an image has several, as ["*_B04.tif", "*_B03.tif"]."""
    background: tuple[int, int, int] = ranged((255, 255, 255), Range(0, 255, whole=True))
    """RGB color behind transparent pixels."""
    max_pixels: int = ranged(MAX_PIXELS, Range(1, 2**40, whole=True))
    """Height times width above which an image is refused."""
    crop_scale: tuple[float, float] = ranged((0.2, 1.0), PAIR_OF_SHARES)
    """Smallest and largest area of a random crop, as a fraction of the image."""
    crop_ratio: tuple[float, float] = ranged((3 / 4, 4 / 3), PAIR_OF_RATIOS)
    """Narrowest and widest aspect ratio of a random crop."""
    flip: float = ranged(0.5, FRACTION)
    """Probability of a horizontal flip."""
    color_jitter: float = ranged(0.0, FRACTION)
    """Strength of random brightness, contrast and saturation (BEiT: 0.4); host ibot uses ibot.color."""
    shrink_on_decode: float | None = ranged(2.0, SHRINK)
    """Decode a JPEG at 1/2, 1/4 or 1/8 of its size if the crop stays this many times larger than needed; null never."""
    mean: Literal["auto", "imagenet", "computed"] | list[float] = ranged("auto", ANY)
    """Mean of each channel in [0, 1]: ImageNet's, computed, a list; auto is ImageNet's for 8-bit RGB, else computed."""
    std: Literal["auto", "imagenet", "computed"] | list[float] = ranged("auto", Range(1e-9, HUGE))
    """Standard deviation of each channel, likewise."""
    workers: Literal["auto"] | int = ranged("auto", WORKERS)
    """Processes that decode images; 0 decodes in the training process."""
    shuffle: ShuffleName = "auto"
    """Order: samples shuffles all images; row_groups reads each group of a Parquet file once; auto is by its size."""
    shuffle_window: int = ranged(8, Range(1, 100_000, whole=True))
    """Row groups that are mixed at a time, where the order is by row groups."""
    crops: int = ranged(1, Range(1, 1_000, whole=True))
    """Crops of each decoded image, all in one batch; an epoch still has one crop per image on average."""
    in_memory: Literal["no", "host", "device"] = "no"
    """Where decoded images are kept: nowhere, in the host's memory, or on the device, which then also crops them."""
    device_side: int | None = ranged(None, SIDE)
    """Side to which in_memory device resizes images of different sizes; null is the size that a mean crop needs."""
    hold_out: int = ranged(0, IMAGES_OR_NONE)
    """Images that are not trained on but looked at by the checks (section verdict); always the same ones."""
    max_bad_fraction: float = ranged(0.1, FRACTION)
    """Largest fraction of images that may fail to decode; such files are logged and skipped."""

    @property
    def channel_count(self) -> int:
        """Number of channels; 3 where it is not known before the images are seen."""
        if isinstance(self.channels, int):
            return self.channels
        return 3 if isinstance(self.channels, str) else len(self.channels)

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths of the images."""
        return ("demo:train",) if self.path is None else (self.path,) if isinstance(self.path, str) else (*self.path,)

    @property
    def columns(self) -> "Columns":
        """Names of the columns of tables."""
        from hardpatch.data.columns import Columns

        return Columns(self.image_column, self.label_column)
