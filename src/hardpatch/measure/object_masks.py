"""Object masks of images, read from a folder or from the source itself."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hardpatch.data.augment import EvalTransform
from hardpatch.data.decode import decode
from hardpatch.data.formats import EXTENSIONS
from hardpatch.data.reading import GRAY, UndecodableImage
from hardpatch.data.sources import Source, Subset
from hardpatch.errors import UserError

MaskReader = Callable[[int], np.ndarray]
"""Returns the mask of the image with that index, bool ``[H, W]``, True on the object."""


def mask_reader(source: Source, folder: Path | None, size: tuple[int, int]) -> MaskReader | None:
    """Return a reader of masks that are resized and cropped to ``size`` like their images.

    Args:
        source: the images.
        folder: masks for :func:`find_masks`; None takes the masks of the source.
        size: (height, width) in pixels.

    Returns:
        None if ``folder`` is None and the source has no masks.

    Raises:
        UserError: if a mask is missing; from the reader, if it cannot be decoded.
    """
    if folder is None:
        own = _own_masks(source)
        if own is None:
            return None
        read: MaskReader = own
    else:
        paths = find_masks(source, folder)

        def read(index: int) -> np.ndarray:
            try:
                return decode(paths[index].read_bytes(), GRAY)[..., 0] > 0
            except (OSError, UndecodableImage) as error:
                raise UserError(f"masks: expected a readable picture, got {paths[index]}: {error}") from None

    transform = EvalTransform(size, GRAY)
    return lambda index: transform(read(index)[..., None].astype(np.uint8) * 255)[0].numpy() > 127


def _own_masks(source: Source) -> MaskReader | None:
    """Return a reader of the masks that the source itself has; None if it has none."""
    if isinstance(source, Subset):
        whole, indices = _own_masks(source.source), source.indices
        return None if whole is None else lambda index: whole(indices[index])
    return getattr(source, "mask", None)


def find_masks(source: Source, folder: Path) -> list[Path]:
    """Find the mask of each image of ``source``: the picture below ``folder`` with the same file stem.

    If several pictures have that stem, the one whose folder is named like the image's folder is used.

    Raises:
        UserError: naming the first image whose mask is missing or ambiguous.
    """
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.name.lower().endswith(EXTENSIONS):
            by_stem[path.stem].append(path)
    masks: dict[Path, None] = {}  # in the order of the images
    for index in range(len(source)):
        name = Path(source.name(index))
        candidates = by_stem[name.stem]
        if len(candidates) > 1:
            candidates = [path for path in candidates if path.parent.name == name.parent.name]
        if len(candidates) != 1 or candidates[0] in masks:
            expected = folder / f"{name.stem}.png"
            got = f"{by_stem[name.stem][0]}, which is not this image's alone" if by_stem[name.stem] else "no such file"
            raise UserError(
                f"masks: expected one mask for each image, for {name} {expected}; got {got}; "
                "name masks like their images, in folders of the same names if stems repeat"
            )
        masks[candidates[0]] = None
    return list(masks)
