"""Formats of image files: their names in Pillow, their extensions, and which of them this installation reads."""

from functools import lru_cache
from importlib.util import find_spec

FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jfif", ".jpe"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k", ".jpx", ".j2c", ".jpc"),
    "AVIF": (".avif",),
}
"""Pillow's name of each format that is decoded, and its file extensions. Pillow knows many more, some of which start
other programs; those are never tried."""
EXTRAS = {
    "HEIF": ((".heic", ".heif", ".hif"), "pillow_heif", "heic"),
    "JXL": ((".jxl",), "pillow_jxl", "jxl"),
    "DICOM": ((".dcm", ".dicom"), "pydicom", "dicom"),
}
"""Formats that need a further package: extensions, its module, and the extra of hardpatch that installs it."""
ARRAYS = (".npy",)
"""NumPy arrays, [H, W], [H, W, C] or [C, H, W]."""
EXTENSIONS = (
    *(extension for extensions in FORMATS.values() for extension in extensions),
    *(extension for extensions, _, _ in EXTRAS.values() for extension in extensions),
    *ARRAYS,
)
"""Extensions of all formats, with those that this installation lacks the package for: such files are named as broken,
with the extra to install, and not left out as something else."""


def has_extra(name: str) -> bool:
    """Return True if the package of a format of :data:`EXTRAS` is installed."""
    return find_spec(EXTRAS[name][1]) is not None


@lru_cache(1)
def pillow_formats() -> tuple[str, ...]:
    """Names of the formats that this Pillow reads, the extras among them, whose plugins are loaded here."""
    from PIL import Image, features

    names = [name for name in FORMATS if name not in ("AVIF", "JPEG2000", "WEBP")]
    names += [
        name
        for name, feature in (("AVIF", "avif"), ("JPEG2000", "jpg_2000"), ("WEBP", "webp"))
        if features.check(feature)
    ]
    if has_extra("HEIF"):
        import pillow_heif

        pillow_heif.register_heif_opener()
        names.append("HEIF")
    if has_extra("JXL"):
        import pillow_jxl  # noqa: F401 - registers itself

        names.append("JXL")
    Image.preinit()
    return tuple(names)
