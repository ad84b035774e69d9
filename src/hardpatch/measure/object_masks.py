"""Object masks of images, read from a folder or from the source itself."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hardpatch.data.augment import EvalTransform
from hardpatch.data.label_maps import EXACT_ENDINGS, LOSSY_ENDINGS, read_object_mask
from hardpatch.data.pairs import Match, match
from hardpatch.data.reading import GRAY, UndecodableImage
from hardpatch.data.sources import Source, Subset
from hardpatch.errors import UserError

log = logging.getLogger("hardpatch")

MaskReader = Callable[[int], np.ndarray]
"""Returns the mask of the image with that index, bool ``[H, W]``, True on the object."""


def mask_reader(
    source: Source, folder: Path | None, size: tuple[int, int], *, optional: bool = False
) -> MaskReader | None:
    """Return a reader of masks that are resized and cropped to ``size`` like their images.

    Args:
        source: the images.
        folder: masks for :func:`find_masks`; None takes the masks of the source.
        size: (height, width) in pixels.
        optional: images without a mask have no object, which is logged; else they are refused.

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
        paths = find_masks(source, folder, optional=optional)
        without = paths.count(None)
        if without:
            log.info(
                "masks: %d of %d images have none in %s, and count as without an object", without, len(paths), folder
            )

        def read(index: int) -> np.ndarray:
            path = paths[index]
            try:
                return np.zeros(size, dtype=np.bool_) if path is None else read_object_mask(path)
            except UndecodableImage as error:
                raise UserError(f"masks: expected a readable picture, got {error}") from None

    transform = EvalTransform(size, GRAY)
    return lambda index: transform(read(index)[..., None].astype(np.uint8) * 255)[0].numpy() > 127


def _own_masks(source: Source) -> MaskReader | None:
    """Return a reader of the masks that the source itself has; None if it has none."""
    if isinstance(source, Subset):
        whole, indices = _own_masks(source.source), source.indices
        return None if whole is None else lambda index: whole(indices[index])
    return getattr(source, "mask", None)


def find_masks(source: Source, folder: Path, *, optional: bool = False) -> list[Path | None]:
    """Find the mask of each image of ``source`` below ``folder``, by :func:`hardpatch.data.pairs.match`.

    Args:
        source: the images.
        folder: of the masks.
        optional: return None for an image without a mask. Where stems repeat, a mask then belongs to the image whose
            folder is called like its own, as in MVTec AD.

    Raises:
        UserError: naming the first image whose mask is missing or ambiguous, or if no image has one.
    """
    paths = sorted(path for path in folder.rglob("*") if path.name.lower().endswith(EXACT_ENDINGS + LOSSY_ENDINGS))
    found = match([source.name(index) for index in range(len(source))], [str(p.relative_to(folder)) for p in paths])
    if optional:
        without = _without_mask(source, found, paths)
        if len(without) == len(source):
            raise UserError(f"masks: expected masks with the file stems of the images, {folder} has none of them")
        kept = [index for index in range(len(source)) if index not in without]
        own = dict(zip(kept, find_masks(Subset(source, kept), folder), strict=True))
        return [own.get(index) for index in range(len(source))]
    wrong = dict.fromkeys(found.missing, "no such file")
    not_alone = {image: masks[0] for image, masks in found.several.items()}
    not_alone |= {image: mask for mask, images in found.shared.items() for image in images[1:]}
    wrong |= {image: f"{paths[mask]}, which is not this image's alone" for image, mask in not_alone.items()}
    for index in sorted(wrong):
        name = Path(source.name(index))
        raise UserError(
            f"masks: expected one mask for each image, for {name} {folder / name.stem}.png; got {wrong[index]}; "
            "name masks like their images, in folders of the same names if stems repeat"
        )
    return [paths[found.maps[index]] for index in range(len(source))]


def _without_mask(source: Source, found: Match, paths: list[Path]) -> set[int]:
    """Images without any mask, or with masks only that other images share and that lie in folders of other names."""
    doubtful = {image: [found.maps[image]] for images in found.shared.values() for image in images} | found.several
    return set(found.missing) | {
        image
        for image, masks in doubtful.items()
        if all(Path(source.name(image)).parent.name != paths[mask].parent.name for mask in masks)
    }
