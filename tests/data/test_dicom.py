"""DICOM, read by pydicom, without which these tests are skipped."""

import io
import warnings
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hardpatch.data.decode import decode, read_header
from hardpatch.data.reading import Reading, UndecodableImage
from tests.data.pixels import RNG, H, W, needs, numbers, read, saved, smooth

pytestmark = needs("pydicom", "dicom")
FLOATS = Reading(1, "float32")


def dcm(
    pixels: np.ndarray, photometric: str = "MONOCHROME2", frames: int = 0, change: Any = None, **values: Any
) -> bytes:
    """Write a DICOM file of 16 bits with 12 in use, or of 8, with other tags, and whatever `change` does to it."""
    from pydicom import dcmwrite
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

    dataset, shape = Dataset(), pixels.shape[bool(frames) :]
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = UID("1.2.3")
    dataset.Rows, dataset.Columns = shape[:2]
    dataset.SamplesPerPixel = shape[2] if len(shape) == 3 else 1
    dataset.PlanarConfiguration, dataset.PhotometricInterpretation = 0, photometric
    dataset.BitsAllocated = 8 * pixels.itemsize
    dataset.BitsStored = 8 if pixels.itemsize == 1 else 12 if pixels.dtype.kind == "u" else 16
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, int(pixels.dtype.kind == "i")
    dataset.add_new("PixelData", "OW" if pixels.itemsize > 1 else "OB", pixels.tobytes())
    if frames:
        dataset.NumberOfFrames = frames
    for name, value in values.items():
        setattr(dataset, name, value)
    if change is not None:
        change(dataset)
    file = io.BytesIO()
    dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


CT = RNG.integers(0, 4096, (H, W), dtype=np.uint16)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ({}, CT),
        ({"RescaleSlope": "2", "RescaleIntercept": "-1024"}, CT * 2.0 - 1024),
        ({"RescaleSlope": "", "RescaleIntercept": ""}, CT),
        ({"WindowCenter": 40, "WindowWidth": 400}, CT.clip(0, 240)),
        (
            {"RescaleSlope": "1", "RescaleIntercept": "-1024", "WindowCenter": 40, "WindowWidth": 400},
            (CT - 1024.0).clip(-160, 240),
        ),
        ({"WindowCenter": [40, 300], "WindowWidth": [400, 2000]}, CT.clip(0, 240)),
        ({"WindowCenter": "", "WindowWidth": ""}, CT),
        ({"WindowCenter": 40, "WindowWidth": 0}, CT),
        ({"PhotometricInterpretation": "MONOCHROME1"}, 4095 - CT),
        (
            {"PhotometricInterpretation": "MONOCHROME1", "WindowCenter": 2000, "WindowWidth": 1000},
            4000 - CT.clip(1500, 2500),
        ),
    ],
)
def test_gray_dicom(tags: dict[str, Any], expected: np.ndarray) -> None:
    assert np.array_equal(read(dcm(CT, **tags)), expected.astype(np.float32))


def test_signed_dicom() -> None:
    values = RNG.integers(-2000, 3000, (H, W), dtype=np.int16)
    assert np.array_equal(read(dcm(values)), values)


def test_frames_of_dicom() -> None:
    frames = RNG.integers(0, 256, (5, H, W), dtype=np.uint8)
    data = dcm(frames, frames=5)
    with pytest.raises(UndecodableImage, match="5 pages or frames"):
        decode(data, FLOATS)
    assert read_header(data).pages == 5
    assert np.array_equal(decode(data, FLOATS, page=3)[:, :, 0], frames[3])
    assert np.array_equal(decode(data, Reading(5, "float32", pages="channels")), frames.transpose(1, 2, 0))


def test_enhanced_dicom() -> None:
    """Files of many frames have the rescaling and the window of each in groups."""
    from pydicom.dataset import Dataset

    def group(name: str, **values: Any) -> Dataset:
        outer, inner = Dataset(), Dataset()
        for tag, value in values.items():
            setattr(inner, tag, value)
        setattr(outer, name, [inner])
        return outer

    window = group("FrameVOILUTSequence", WindowCenter=1000, WindowWidth=500)
    slopes = [group("PixelValueTransformationSequence", RescaleSlope=k, RescaleIntercept=-k) for k in (1, 2)]
    groups: dict[str, Any] = {"SharedFunctionalGroupsSequence": [window], "PerFrameFunctionalGroupsSequence": slopes}
    data = dcm(np.stack([CT, CT]), frames=2, **groups)
    for page in (0, 1):
        expected = ((page + 1.0) * CT - page - 1).clip(750, 1250)
        assert np.array_equal(decode(data, FLOATS, page)[:, :, 0], expected)


def test_colors_of_dicom() -> None:
    for most, dtype in ((255, "uint8"), (4095, "uint16")):
        colors = numbers(most, 3, dtype=dtype)
        assert np.array_equal(read(dcm(colors, "RGB")), colors)
    ycc = np.asarray(Image.fromarray(smooth()).convert("YCbCr"))
    assert np.abs(read(dcm(ycc, "YBR_FULL")).astype(int) - smooth()).max() <= 3


@pytest.mark.parametrize("bits", [8, 16])
def test_palettes_of_dicom(bits: int) -> None:
    colors = RNG.integers(0, 1 << bits, (3, 256)).astype(f"uint{bits}")

    def palette(dataset: Any) -> None:
        for k in range(3):
            dataset.add_new(0x00281101 + k, "US", [256, 0, bits])
            dataset.add_new(0x00281201 + k, "OW", colors[k].tobytes())

    indices = numbers(255, dtype="uint8")
    assert np.array_equal(read(dcm(indices, "PALETTE COLOR", change=palette)), colors.T[indices])


@pytest.mark.parametrize("photometric", ["YBR_FULL_422", "RGB"])
def test_compressed_dicom(photometric: str) -> None:
    """With JFIF in it, a JPEG is no RGB, whatever the file says."""
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit, RLELossless

    rle = dcm(CT, change=lambda dataset: dataset.compress(RLELossless, generate_instance_uid=False))
    assert np.array_equal(read(rle), CT)

    def jpeg(dataset: Any) -> None:
        dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        dataset.PixelData = encapsulate([saved(Image.fromarray(smooth()), "JPEG", quality=95)])
        dataset["PixelData"].is_undefined_length = True

    assert np.abs(read(dcm(smooth(), photometric, change=jpeg)).astype(int) - smooth()).max() <= 16


def test_dicom_that_cannot_be_read_says_why() -> None:
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGLSLossless

    def unknown(dataset: Any) -> None:
        dataset.file_meta.TransferSyntaxUID = JPEGLSLossless
        dataset.PixelData = encapsulate([b"no image"])
        dataset["PixelData"].is_undefined_length = True

    data = dcm(CT)
    for end, reason in (
        (len(data) - 2, "number of bytes of pixel data is less"),
        (150, "without an image, such as a rep"),
    ):
        with pytest.raises(UndecodableImage, match=reason):
            decode(data[:end], FLOATS)
    with pytest.raises(UndecodableImage, match="DICOM: Unable to dec"):
        decode(dcm(CT, change=unknown), FLOATS)
    with pytest.raises(UndecodableImage, match="60000 x 60000 pixels"):
        decode(dcm(CT, Rows=60000, Columns=60000), FLOATS)


def test_oddities_of_dicom_are_no_noise(capfd: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = dcm(CT, PatientID="x" * 80, StudyDate="no date", PixelData=CT.tobytes() * 3)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert np.array_equal(read(data), CT)
    assert capfd.readouterr() == ("", "")
