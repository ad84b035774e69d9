"""DICOM files by pydicom, an extra: values after rescaling, or shown through their window."""

import io
import logging
import warnings
from typing import Any

import numpy as np

from hardpatch.data.header import Header, check_memory, check_pixels, chosen_page, finite, stacked
from hardpatch.data.reading import Pixels, Reading, UndecodableImage, arranged

REQUIRED = ("Rows", "Columns", "PhotometricInterpretation", "BitsAllocated")
RESCALING, WINDOW = "PixelValueTransformationSequence", "FrameVOILUTSequence"
"""Functional groups that hold the rescaling and the window of a frame in enhanced files."""


def decode_dicom(data: bytes, reading: Reading, page: int | None = None) -> Pixels:
    """Decode a DICOM file to its values after rescaling (for CT: Hounsfield units), or to its colors.

    With a window in the file the values are cut off at its edges. Raises UndecodableImage.
    """
    dataset = _read(data)
    check_pixels(dataset.Rows, dataset.Columns, reading.max_pixels)
    frames = _frames(dataset)
    if frames > 1 and page is None and reading.pages == "channels":
        check_memory(dataset.Rows, dataset.Columns, 4 * frames, reading.max_pixels)  # float32
        pixels = stacked(_frame(dataset, k) for k in range(frames))
    else:
        pixels = _frame(dataset, chosen_page(frames, page, reading))
    return arranged(finite(pixels, reading), reading)


def dicom_header(data: bytes, max_pixels: int) -> Header:
    """Read the header of a DICOM file."""
    dataset = _read(data)
    check_pixels(dataset.Rows, dataset.Columns, max_pixels)
    dtype = _color_type(dataset)
    return Header(dataset.Rows, dataset.Columns, 3 if dtype else 1, dtype or "float32", "DICOM", _frames(dataset))


def _read(data: bytes) -> Any:
    try:
        import pydicom
    except ImportError:
        raise UndecodableImage("a DICOM file, which needs a further package: pip install 'hardpatch[dicom]'") from None
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # what matters is raised; its import sets another level
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(io.BytesIO(data))
            absent = [name for name in REQUIRED if not dataset.get(name)]
            if not absent:
                dataset.SamplesPerPixel = dataset.get("SamplesPerPixel") or 1
                _ = dataset.Rows * dataset.Columns, _frames(dataset), _color_type(dataset)  # raise if they are garbage
    except Exception as error:  # pydicom raises nearly anything on broken bytes
        raise UndecodableImage(f"broken DICOM file ({' '.join(str(error).split())})") from None
    if absent:
        raise UndecodableImage(f"a DICOM file without an image, such as a report, or a truncated one (no {absent[0]})")
    return dataset


def _frames(dataset: Any) -> int:
    return int(dataset.get("NumberOfFrames", 1) or 1)


def _color_type(dataset: Any) -> str:
    """Return the type of colors; empty for gray."""
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        bits = (dataset.get("RedPaletteColorLookupTableDescriptor") or [0, 0, 8])[2]
    else:
        bits = dataset.BitsAllocated if dataset.SamplesPerPixel > 1 else 0
    return ("uint8" if bits <= 8 else "uint16") if bits else ""


def _frame(dataset: Any, number: int) -> Pixels:
    """Decode a frame to [H, W, 1 or 3]."""
    try:
        from pydicom.pixels.processing import apply_color_lut
        from pydicom.pixels.utils import pixel_array

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values: Pixels = pixel_array(dataset, index=number)
            dtype = _color_type(dataset)
            if not dtype:
                return _shown(values, dataset, number)[:, :, None]
            if dataset.SamplesPerPixel == 1:
                values = apply_color_lut(values, dataset)[:, :, :3]
            return values.astype(dtype)
    except Exception as error:  # decoders of many libraries
        raise UndecodableImage(f"DICOM: {' '.join(str(error).split())}") from None


def _shown(values: Pixels, dataset: Any, number: int) -> Pixels:
    """Rescale gray values, cut them off at the window, and turn MONOCHROME1, which shows its least value white."""
    from pydicom.pixels.processing import apply_rescale

    ends = _stored_range(values, dataset)
    for groups, k in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", number)):
        for group in list(dataset.get(groups) or ())[k : k + 1]:
            for name in (RESCALING, WINDOW):
                for settings in group.get(name) or ():
                    dataset.update(settings)
    for name, neutral in (("RescaleSlope", 1), ("RescaleIntercept", 0)):
        if dataset.get(name) is None:
            setattr(dataset, name, neutral)
    values, ends = (apply_rescale(array, dataset).astype(np.float32) for array in (values, ends))
    center, width = (_first(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if center is not None and width:
        ends = np.array([center - width / 2, center + width / 2], np.float32)
        values = values.clip(*ends)
    return ends.sum() - values if dataset.PhotometricInterpretation == "MONOCHROME1" else values


def _stored_range(values: Pixels, dataset: Any) -> Pixels:
    """Least and greatest value of the bits that are stored; those of the frame for floating point."""
    if values.dtype.kind == "f":
        return np.array([values.min(), values.max()])
    levels = 1 << int(dataset.BitsStored)
    least = -(levels // 2) if dataset.PixelRepresentation else 0
    return np.array([least, least + levels - 1])


def _first(value: Any) -> float | None:
    """Return the first of several windows."""
    values = [value] if value is None or not hasattr(value, "__len__") else list(value)
    return None if not values or values[0] is None else float(values[0])
