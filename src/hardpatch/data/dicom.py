"""DICOM files by pydicom, an extra: values after rescaling, or shown through their window."""

import io
from typing import Any

import numpy as np

from hardpatch.data.header import Header, check_pixels, chosen_page, kept_type
from hardpatch.data.reading import Pixels, Reading, UndecodableImage, arranged


def decode_dicom(data: bytes, reading: Reading, page: int | None = None) -> Pixels:
    """Decode a DICOM file to its values after rescaling (for CT: Hounsfield units), or of 8-bit colors.

    With a window in the file the values are cut off at its edges. Raises UndecodableImage.
    """
    dataset = _read(data)
    check_pixels(dataset.Rows, dataset.Columns, reading.max_pixels)
    frames = _frames(dataset)
    number = chosen_page(frames, page, reading)
    try:
        from pydicom.pixels import apply_color_lut, apply_rescale, pixel_array

        values = pixel_array(dataset, index=number)
        if dataset.PhotometricInterpretation == "PALETTE COLOR":
            values = apply_color_lut(values, dataset)
        elif dataset.SamplesPerPixel == 1:
            values = _windowed(apply_rescale(values, dataset).astype(np.float32), dataset)
    except Exception as error:  # decoders of many libraries
        raise UndecodableImage(f"DICOM: {' '.join(str(error).split())}") from None
    pixels = values[:, :, None] if values.ndim == 2 else values
    return arranged(pixels.astype(kept_type(pixels.dtype)), reading)


def dicom_header(data: bytes, max_pixels: int) -> Header:
    """Read the header of a DICOM file."""
    dataset = _read(data)
    check_pixels(dataset.Rows, dataset.Columns, max_pixels)
    color = dataset.SamplesPerPixel > 1 or dataset.PhotometricInterpretation == "PALETTE COLOR"
    dtype = "float32" if not color else "uint8" if dataset.BitsAllocated <= 8 else "uint16"
    return Header(dataset.Rows, dataset.Columns, 3 if color else 1, dtype, "DICOM", _frames(dataset))


def _read(data: bytes) -> Any:
    try:
        import pydicom
    except ImportError:
        raise UndecodableImage("a DICOM file, which needs a further package: pip install 'hardpatch[dicom]'") from None
    try:
        dataset = pydicom.dcmread(io.BytesIO(data))
        _ = dataset.Rows, dataset.Columns, dataset.SamplesPerPixel, dataset.PhotometricInterpretation
    except Exception as error:  # pydicom raises nearly anything on broken bytes
        raise UndecodableImage(f"broken DICOM file ({' '.join(str(error).split())})") from None
    return dataset


def _frames(dataset: Any) -> int:
    return int(dataset.get("NumberOfFrames", 1) or 1)


def _windowed(values: Pixels, dataset: Any) -> Pixels:
    """Cut rescaled values off at the first window of the file; MONOCHROME1 shows its least value white."""
    center, width = dataset.get("WindowCenter"), dataset.get("WindowWidth")
    if center is not None and width is not None:
        center, width = (float(x[0] if hasattr(x, "__len__") else x) for x in (center, width))
        values = values.clip(center - width / 2, center + width / 2)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        values = values.max() + values.min() - values
    return values
