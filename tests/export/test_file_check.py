"""Features of image files in timm and transformers, with the preprocessing of those libraries, against ours."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.transforms.v2 import functional  # type: ignore[import-untyped]

import hardpatch
from hardpatch.cli import main
from hardpatch.data.reading import Reading
from hardpatch.data.sources import open_source
from hardpatch.errors import UserError
from hardpatch.export.file_check import compare_files, own_preprocessing
from hardpatch.export.result import ExportResult
from hardpatch.export.run import export_hugging_face, export_timm
from hardpatch.interchange.backbone import load_backbone
from hardpatch.interchange.foreign import EXPORTED
from hardpatch.measure.labels import eval_transform
from tests.export.runs import run_of

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "grass.png")
SHAPES = ((50, 50), (300, 300), (40, 71), (71, 40), (256, 347), (401, 263))
"""Height and width: square, landscape and portrait, smaller and larger than 224; margins of 3 pixels among them."""


def write_images(folder: Path, channels: int = 3) -> Path:
    """Write each of :data:`SHAPES` as PNG and JPEG and, in color, photographs."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for height, width in SHAPES:
        coarse = Image.fromarray(rng.integers(0, 256, (9, 11, 3), dtype=np.uint8)).resize((width, height))
        for suffix in ("png", "jpg"):
            coarse.convert("RGB" if channels == 3 else "L").save(folder / f"{height}x{width}.{suffix}")
    spec = find_spec("skimage")
    assert spec is not None
    assert spec.origin is not None
    for name in PHOTOGRAPHS if channels == 3 else ():
        (folder / name).write_bytes((Path(spec.origin).parent / "data" / name).read_bytes())
    return folder


@torch.no_grad()
def own_features(run: Path, folder: Path) -> dict[str, Tensor]:
    """Return ``[N, D]`` of each file, from the pixels that every verb evaluates features of."""
    model, source = hardpatch.load(run), open_source(folder)
    transform = eval_transform(model, source)
    images = {Path(source.name(k)).name: source.image(k, model.reading) for k in range(len(source))}
    return {name: model.encode(model.normalize(transform(image)[None]))[0] for name, image in images.items()}


@torch.no_grad()
def their_features(result: ExportResult, path: Path, mode: str = "RGB") -> Tensor:
    """Return ``[N, D]`` of a file, with model and preprocessing of the two printed lines of Python."""
    libraries = {"timm": timm, "transformers": transformers}
    transformers.utils.logging.disable_progress_bar()
    model = eval(result.code, libraries).eval()
    preprocessing = eval(str(result.preprocessing), libraries | {"model": model})
    picture = Image.open(path).convert(mode)
    if "transformers" in result.code:
        return model(preprocessing(picture, return_tensors="pt")["pixel_values"]).last_hidden_state[0]
    return model.forward_features(preprocessing(picture)[None])[0]


def check_all_files(run: Path, tmp_path: Path, channels: int = 3) -> None:
    folder = write_images(tmp_path / "images", channels)
    expected = own_features(run, folder)
    assert len(expected) == 2 * len(SHAPES) + (len(PHOTOGRAPHS) if channels == 3 else 0)
    exports = [
        export_timm(run, tmp_path / "vit.safetensors"),
        export_timm(run, tmp_path / "timm"),
        export_hugging_face(run, tmp_path / "hf"),
    ]
    for result in exports:
        assert result.files is not None
        assert max(result.files.png, result.files.jpeg) < 1e-5
        for name, features in expected.items():
            difference = their_features(result, folder / name, "RGB" if channels == 3 else "L") - features
            assert difference.abs().max() / features.abs().max() < 1e-4, (result.code, name)


@pytest.mark.parametrize(
    ("image_size", "patch_size"), [(32, 4), (64, 8), (224, 16), (192, 16), ([24, 40], 4), ([112, 144], 16)]
)
def test_features_of_files(tmp_path: Path, image_size: Any, patch_size: int) -> None:
    model = {"patch_size": patch_size, "decoder_depth": 1}
    run = run_of(tmp_path / "run", data={"image_size": image_size}, model=model, teacher=False)
    check_all_files(run, tmp_path)


def test_features_of_gray_files(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", data={"image_size": 32, "channels": 1}, teacher=False)
    check_all_files(run, tmp_path, channels=1)


@pytest.mark.parametrize(("host", "positions"), [("beit", "relative"), ("ibot", "learned")])
def test_a_folder_for_timm(tmp_path: Path, host: str, positions: str) -> None:
    run = run_of(tmp_path / "run", host, model={"positions": positions}, data={"image_size": [12, 20]})
    result = export_timm(run, tmp_path / "vit", "teacher")
    assert sorted(path.name for path in (tmp_path / "vit").iterdir()) == [
        *("README.md", "config.json", "model.safetensors", "parity.json")
    ]
    data = timm.data.resolve_model_data_config(eval(result.code, {"timm": timm}))
    assert data == {
        "input_size": (3, 12, 20),
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.3, 0.4],
    }
    images = torch.randn(2, 3, 12, 20)
    with torch.no_grad():
        expected = load_backbone(run, "teacher").encoder.eval()(images)
        if positions == "learned":  # timm's BEiT is not read
            assert torch.equal(load_backbone(tmp_path / "vit").encoder.eval()(images), expected)
        model: Any = eval(result.code, {"timm": timm}).eval()
        assert torch.allclose(model.forward_features(images), expected, atol=1e-5)
        # as a file, whose metadata describe the model in the same way
        export_timm(run, tmp_path / "vit.safetensors", "teacher")
        with safe_open(tmp_path / "vit.safetensors", "pt") as file:
            assert json.loads(file.metadata()["timm_config"]) == json.loads(
                (tmp_path / "vit" / "config.json").read_text()
            )


def test_a_whole_mae_from_files(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", data={"image_size": 32})
    result = export_hugging_face(run, tmp_path / "mae", form="vit_mae")
    assert result.files is not None
    assert max(result.files.png, result.files.jpeg) < 1e-5
    assert result.files.library == f"transformers {transformers.__version__}"


@pytest.mark.parametrize("image_size", [32, 224])
def test_hugging_faces_own_class_differs_by_rounding_where_margins_are_even(tmp_path: Path, image_size: int) -> None:
    run = run_of(tmp_path / "run", data={"image_size": image_size}, model={"patch_size": 16}, teacher=False)
    export_hugging_face(run, tmp_path / "vit")
    processor = transformers.BitImageProcessor.from_pretrained(tmp_path / "vit")
    model = load_backbone(run)
    folder = write_images(tmp_path / "images")
    for name in ("50x50.png", "300x300.jpg", "astronaut.png"):
        pixels = processor(Image.open(folder / name), return_tensors="pt")["pixel_values"]
        difference = (pixels - own_preprocessing((folder / name).read_bytes(), model)).abs()
        assert difference.max() <= 2.01 / 255 / min(model.std), name
        assert difference.gt(1e-5).float().mean() < 0.02, name


@pytest.mark.parametrize(
    ("reading", "reason"),
    [
        (Reading(13), "this model takes 13 of uint8"),
        (Reading(3, "uint16", (0.0,), (65535.0,)), "this model takes 3 of uint16"),
        (Reading(1, "uint8", (20.0,), (90.0,)), "this model takes another range"),
        (Reading((2, 1, 0)), "this model takes those with the indices (2, 1, 0)"),
    ],
)
def test_models_of_other_images_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], reading: Reading, reason: str
) -> None:
    data = {"image_size": 32, "channels": reading.number}
    export_timm(run_of(tmp_path / "run", data=data, teacher=False), tmp_path / "8_bits.safetensors")
    with safe_open(tmp_path / "8_bits.safetensors", "pt") as file:
        metadata = json.loads(file.metadata()[EXPORTED]) | {"reading": reading.to_dict()}
    model = tmp_path / "model.safetensors"
    save_file(load_file(tmp_path / "8_bits.safetensors"), model, {EXPORTED: json.dumps(metadata)})
    for to, library in (("timm", "timm "), ("hf", "transformers ")):
        assert main(["export", str(model), "--to", to, "--out", str(tmp_path / to)]) == 0
        printed = capsys.readouterr().out
        assert f"not checked from image files: with {library}" in printed
        assert "'s own preprocessing, they" in printed
        assert f"{reason}\n" in printed
        assert "largest difference of outputs:" in printed
        assert "checked from a" not in printed


def test_another_interpolation_or_crop_is_refused(tmp_path: Path) -> None:
    model = load_backbone(run_of(tmp_path / "run", data={"image_size": 32}))
    encoder = model.encoder.eval()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.mean, model.std))

    def normalized(picture: Image.Image) -> Tensor:
        return ((functional.to_image(picture).float() / 255 - mean) / std)[None]

    def exact(picture: Image.Image) -> Tensor:
        bicubic = functional.InterpolationMode.BICUBIC
        return normalized(functional.center_crop(functional.resize(picture, [32], bicubic), [32, 32]))

    def bilinear(picture: Image.Image) -> Tensor:
        return normalized(functional.center_crop(functional.resize(picture, [32]), [32, 32]))

    def squashed(picture: Image.Image) -> Tensor:
        return normalized(picture.resize((32, 32), Image.Resampling.BICUBIC))

    result = compare_files(model, encoder, encoder, exact, "torchvision")
    assert result is not None
    assert max(result.png, result.jpeg) < 1e-5
    for preprocess in (bilinear, squashed):
        with pytest.raises(UserError, match=r"torchvision's own preprocessing of a PNG file leads to other features"):
            compare_files(model, encoder, encoder, preprocess, "torchvision")
    with pytest.raises(UserError, match=r"features of shape \[1, 64, 32\]"):
        compare_files(model, encoder, lambda images: encoder(images)[:, 1:], exact, "torchvision")
    with pytest.raises(UserError, match="other features, by nan of the largest"):
        compare_files(model, encoder, lambda images: encoder(images) * torch.nan, exact, "torchvision")
