"""Formats of image files: their names in Pillow, their extensions, and which of them this installation reads."""

from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import NamedTuple

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
    from PIL import features

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
        from pillow_jxl import JpegXLImagePlugin  # registers itself

        JpegXLImagePlugin.DECODE_THREADS = 0  # the workers of a loader are enough
        names.append("JXL")
    return tuple(names)


class Format(NamedTuple):
    """A format of images, and what this installation reads it with."""

    name: str
    extensions: tuple[str, ...]
    package: str
    """what reads it, with its version if it is installed"""
    installed: bool
    install: str = ""
    """what to install if it is missing, or for the rarer files of the format"""


READERS = {"JPEG": ("simplejpeg", "pillow"), "PNG": ("pillow", "torchvision"), "TIFF": ("tifffile", "pillow")}
"""Packages that read a format; those that are not here are read by Pillow alone."""
BY_IMAGECODECS = {"TIFF": "further compressions", "JPEG2000": "more than 8 bits in color, and bands"}
"""Parts of formats that imagecodecs reads, an extra."""
EXTRA_PACKAGES = {"HEIF": "pillow-heif", "JXL": "pillow-jxl-plugin", "DICOM": "pydicom"}
"""Names of the packages of :data:`EXTRAS` where they are installed from."""


def formats() -> list[Format]:
    """Return every format that can be read: ``hardpatch formats``."""
    readable = pillow_formats()
    found = []
    for name, extensions in FORMATS.items():
        packages = " and ".join(_with_version(package) for package in READERS.get(name, ("pillow",)))
        install = "" if name in readable else "pip install --upgrade pillow"
        if name in BY_IMAGECODECS and find_spec("imagecodecs") is not None:
            packages += f" and {_with_version('imagecodecs')}"
        elif name in BY_IMAGECODECS and not install:
            install = f"pip install 'hardpatch[tiff]' for {BY_IMAGECODECS[name]}"
        found.append(Format(name, extensions, packages, name in readable, install))
    for name, (extensions, _, extra) in EXTRAS.items():
        install = "" if has_extra(name) else f"pip install 'hardpatch[{extra}]'"
        found.append(Format(name, extensions, _with_version(EXTRA_PACKAGES[name]), has_extra(name), install))
    found.append(Format("NPY", ARRAYS, _with_version("numpy"), True))
    return [*found, Format("Parquet", (".parquet",), _with_version("pyarrow"), True)]


def _with_version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return package
