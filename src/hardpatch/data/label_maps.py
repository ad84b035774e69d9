"""Reading of label maps and masks: the values that stand in the file, never scaled, blended or resampled."""

import io
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from hardpatch.data.orientation import TAG
from hardpatch.data.reading import UndecodableImage

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

EXACT = {"PNG": (".png",), "TIFF": (".tif", ".tiff"), "BMP": (".bmp",), "GIF": (".gif",)}
"""Pillow's name of each format that keeps values as they are, and its file extensions."""
LOSSY = {"JPEG": (".jpg", ".jpeg"), "WEBP": (".webp",)}
"""The same of formats that change values; masks in them are compared with a threshold."""
EXACT_ENDINGS = tuple(ending for endings in EXACT.values() for ending in endings)
LOSSY_ENDINGS = tuple(ending for endings in LOSSY.values() for ending in endings)
SAMPLE_FORMAT, UNSIGNED = 339, 1
"""Tag of a TIFF for the type of its values, and one of the types."""
HALF = 128
"""From this value on a pixel of a lossy object mask belongs to the object."""

Kind = Literal["1-bit", "gray", "palette", "RGB"]


class LabelMap(NamedTuple):
    """Content of a label file."""

    values: npt.NDArray[np.integer]
    """``[H, W]``, or uint8 ``[H, W, 3]`` for colors; upright if the file has an EXIF orientation"""
    kind: Kind
    palette: npt.NDArray[np.uint8] | None = None
    """color of each index, ``[n, 3]``, if the file has a palette"""

    def colors(self) -> npt.NDArray[np.uint8]:
        """Return the map as a viewer shows it: uint8 ``[H, W, 3]``. Raises UndecodableImage for more than 8 bits."""
        if self.kind == "RGB":
            return self.values.astype(np.uint8)
        if self.palette is not None:
            return self.palette[self.values]
        values = self.values * 255 if self.kind == "1-bit" else self.values
        if values.size and (values.min() < 0 or values.max() > 255):
            raise UndecodableImage(f"a value of {values.max()} is no 8-bit color")
        return np.repeat(values.astype(np.uint8)[..., None], 3, axis=2)


def read_label_map(path: Path, lossy: bool = False) -> LabelMap:
    """Read a label map from a PNG, TIFF, BMP or GIF file of one page.

    Values of 1, 8, 16 and 32 bits are kept, floats where all of them are whole numbers. An opaque alpha channel is
    dropped. Transparency in a palette belongs to its colors, and is ignored.

    Args:
        path: the file.
        lossy: accept JPEG and WebP too, as gray values.

    Raises:
        UndecodableImage: with the path and the reason, for a broken file and for what cannot be a label map.
    """
    try:
        data = path.read_bytes()
        try:
            return _with_pillow(data, lossy)
        except UndecodableImage as error:
            if data[:4] not in (b"II*\0", b"MM\0*") or error.__cause__ is None:
                raise
            return _with_tifffile(data, error)
    except UndecodableImage as error:
        raise UndecodableImage(f"{path}: {error}") from None
    except OSError as error:
        raise UndecodableImage(f"{path}: cannot read it ({error.strerror or error})") from None


def read_object_mask(path: Path) -> npt.NDArray[np.bool_]:
    """Read the mask of an object, black everywhere but on the object: bool ``[H, W]``.

    In JPEG and WebP files, which are never quite black, the object has a gray value of 128 or more.

    Raises:
        UndecodableImage: see :func:`read_label_map`.
    """
    label_map = read_label_map(path, lossy=True)
    if path.name.lower().endswith(LOSSY_ENDINGS):
        return np.asarray(label_map.values >= HALF)
    if label_map.kind in ("RGB", "palette"):
        return np.asarray(label_map.colors().any(axis=2))
    return np.asarray(label_map.values != 0)


def _with_pillow(data: bytes, lossy: bool) -> LabelMap:
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=(*EXACT, *LOSSY)) as file:
            pages = getattr(file, "n_frames", 1)
            if pages > 1:
                raise UndecodableImage(f"got {pages} pages; keep the one that has the classes")
            if file.format in LOSSY and not lossy:
                raise UndecodableImage(
                    f"got {file.format}, which changes the values{' (unless lossless)' * (file.format == 'WEBP')}; "
                    "save it as PNG, or for a mask of two classes see --threshold"
                )
            if file.mode[0] in "RL" and ";16" in str(file.tile):  # Pillow would cut the values to 8 bits
                raise UndecodableImage("got several channels of 16 bits; save class ids as gray, or colors with 8 bits")
            file.load()
            return _values(file, ImageOps.exif_transpose(file))
    except UndecodableImage:
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on broken bytes
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "not a PNG, TIFF, BMP or GIF file"
        raise UndecodableImage(f"cannot read it ({reason})") from error


def _values(file: "ImageFile", upright: "Image") -> LabelMap:
    mode = upright.mode
    if mode == "RGB" and file.format not in LOSSY:
        return LabelMap(np.array(upright), "RGB")
    if mode in ("RGBA", "LA", "PA"):
        bands = np.array(upright.convert("RGBA"))
        if mode != "PA" and (bands[..., 3] == 255).all():
            return LabelMap(bands[..., :3], "RGB") if mode == "RGBA" else LabelMap(bands[..., 0], "gray")
        raise UndecodableImage(
            f"got an alpha channel that is not opaque in {(bands[..., 3] != 255).sum()} pixels; save it without alpha"
        )
    if file.format in LOSSY:
        return LabelMap(np.array(upright.convert("L")), "gray")
    if mode == "P":
        palette = np.zeros((256, 3), dtype=np.uint8)
        colors = np.array(upright.getpalette("RGB"), dtype=np.uint8).reshape(-1, 3)
        palette[: len(colors)] = colors
        return LabelMap(np.array(upright), "palette", palette)
    if mode == "1":
        return LabelMap(np.array(upright).astype(np.uint8), "1-bit")
    if mode == "F":
        return LabelMap(_whole_numbers(np.array(upright)), "gray")
    tags = getattr(file, "tag_v2", {})
    if mode == "I" and file.format == "TIFF" and tags.get(SAMPLE_FORMAT, (UNSIGNED,))[0] == UNSIGNED:
        return LabelMap(np.array(upright).view(np.uint32).astype(np.int64), "gray")  # Pillow has signed ones only
    if mode == "L" or mode.startswith("I"):
        return LabelMap(np.array(upright), "gray")
    raise UndecodableImage(f"got the color mode {mode}; save it as gray, palette or RGB")


def _with_tifffile(data: bytes, error: UndecodableImage) -> LabelMap:
    """Read a TIFF of one channel whose type Pillow does not know, such as int64, NumPy's own."""
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            pages, values = len(file.pages), file.asarray()
            orientation = file.pages.first.tags.valueof(TAG, 1)
    except Exception:  # as Pillow's plugins, on broken bytes
        raise error from None
    if pages > 1 or values.ndim != 2:
        raise UndecodableImage(f"got a TIFF of {pages} pages, shape {values.shape}; expected one page of one channel")
    if orientation != 1:
        raise UndecodableImage(f"got {values.dtype} with orientation {orientation}; save it upright")
    if values.dtype.kind == "f":
        values = _whole_numbers(values)
    if values.dtype.kind not in "iu":
        raise UndecodableImage(f"got values of type {values.dtype}; expected whole numbers")
    return LabelMap(values, "gray")


def _whole_numbers(values: npt.NDArray[np.floating]) -> npt.NDArray[np.integer]:
    wide = values.astype(np.float64)
    whole = np.isfinite(wide) & (wide == np.floor(wide)) & (np.abs(wide) < 2**31)
    if not whole.all():
        raise UndecodableImage(
            f"got {values.dtype} values that are no class ids, {values[~whole][0]:g} among them in {(~whole).sum()} "
            "pixels; save whole numbers"
        )
    return values.astype(np.int32)
