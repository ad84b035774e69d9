"""ONNX files in onnxruntime: every size, other batches and image sizes, and predictions on photographs."""

import json
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor

import hardpatch
from hardpatch.choices import SIZES
from hardpatch.errors import UserError
from hardpatch.export.to_onnx import export_onnx
from hardpatch.segment.measure import predict_logits
from tests.export.classifiers import CLASSES, classifier_file, photographs, segmenter_file
from tests.export.runs import run_of


def run_onnx(path: Path, images: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(str(path))
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def difference(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


@torch.no_grad()
@pytest.mark.parametrize("size", SIZES)
def test_every_size(size: str, tmp_path: Path) -> None:
    # one of its blocks, to save time
    model = {"size": size, "depth": 1, "decoder_width": 16, "decoder_heads": 2, "decoder_depth": 1, "patch_size": 16}
    run = run_of(tmp_path / "run", teacher=False, model=model, data={"image_size": 32})
    export_onnx(run, tmp_path / "vit.onnx")
    encoder = hardpatch.load(run)
    for batch, sides in ((1, (32, 32)), (7, (32, 32)), (2, (48, 16))):
        images = torch.randn(batch, 3, *sides)
        assert difference(run_onnx(tmp_path / "vit.onnx", images), encoder.encode(images)) < 1e-4
    report = json.loads((tmp_path / "vit.parity.json").read_text())
    assert sorted(report["differences"]) == ["batch 1", "batch 2, 48 x 64 px", "batch 7"]
    assert max(report["differences"].values()) < 1e-4


@torch.no_grad()
def test_weights_too_large_for_one_file_lie_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.onnx._internal.exporter._onnx_program._LARGE_MODEL_THRESHOLD", 1000)
    run = run_of(tmp_path / "run")
    result = export_onnx(run, tmp_path / "out" / "vit.onnx")
    assert any("the weights are in vit.onnx.data, which belongs beside it" in line for line in result.report())
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    assert sorted(path.name for path in moved.iterdir()) == ["vit.onnx", "vit.onnx.data", "vit.parity.json"]
    encoder = hardpatch.load(run)
    images = torch.randn(2, 3, *encoder.image_size)
    assert difference(run_onnx(moved / "vit.onnx", images), encoder.encode(images)) < 1e-4
    for name in ("vit.onnx", "vit.parity.json"):
        (moved / name).unlink()
    with pytest.raises(UserError, match=r"vit.onnx.data exists and is never overwritten"):
        export_onnx(run, moved / "vit.onnx")


@torch.no_grad()
@pytest.mark.parametrize("host", ["mae", "beit"])
def test_a_loss_predictor(host: Any, tmp_path: Path) -> None:
    model = {"positions": "relative", "layer_scale": 0.1} if host == "beit" else {}
    run = run_of(tmp_path / "run", host, model=model, data={"image_size": [12, 20]})
    result = export_onnx(run, tmp_path / "loss.onnx", "teacher", part="predictor")
    output, differences = result.report()
    assert output == "output: difficulty [B, N], the predicted loss of each patch"
    assert differences.startswith(f"largest difference in onnxruntime {onnxruntime.__version__}: batch 1: ")
    model_of_run = hardpatch.load(run, "teacher")
    for batch, sides in ((1, (12, 20)), (7, (12, 20)), (3, (8, 28))):
        images = torch.randn(batch, 3, *sides)
        assert difference(run_onnx(tmp_path / "loss.onnx", images), model_of_run.predict_loss(images)) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("frozen", [False, True])
def test_a_classifier_on_photographs(frozen: bool, tmp_path: Path) -> None:
    file = classifier_file(tmp_path / "run", frozen=frozen)
    export_onnx(file, tmp_path / "classifier.onnx")
    model = hardpatch.load_classifier(file).model
    images = model.normalize(photographs((32, 32)))
    expected, scores = model(images), run_onnx(tmp_path / "classifier.onnx", images)
    assert difference(scores, expected) < 1e-4
    assert torch.equal(scores.argmax(1), expected.argmax(1))
    assert len(scores.argmax(1).unique()) > 1
    assert json.loads((tmp_path / "classifier.parity.json").read_text())["classes"] == list(CLASSES)


@torch.no_grad()
def test_a_segmenter_on_photographs(tmp_path: Path) -> None:
    run = segmenter_file(tmp_path / "run")
    result = export_onnx(run, tmp_path / "segmenter.onnx")
    assert "the image size is fixed to 32 x 40: the head pools to grids of fixed sizes" in result.report()
    model, _, inference = hardpatch.load_segmenter(run)
    pixels = photographs((32, 40))
    expected = predict_logits(model, pixels, inference)
    for batch in (1, 7):
        scores = run_onnx(tmp_path / "segmenter.onnx", model.normalize(pixels[:batch]))
        assert difference(scores, expected[:batch]) < 1e-4 * float(expected.abs().max())
        assert torch.equal(scores.argmax(1), expected[:batch].argmax(1))
    assert len(expected.argmax(1).unique()) > 1


def test_parts_that_are_not_there_and_files_that_are(tmp_path: Path) -> None:
    file = classifier_file(tmp_path / "run")
    with pytest.raises(UserError, match=r"--part predictor: .* has no loss predictor; expected --part classifier"):
        export_onnx(file, tmp_path / "a.onnx", part="predictor")
    with pytest.raises(UserError, match=r"--part segmenter: .* has no segmenter; expected --part classifier"):
        export_onnx(file, tmp_path / "a.onnx", part="segmenter")
    with pytest.raises(UserError, match=r"ends in \.onnx"):
        export_onnx(file, tmp_path / "a.pth")
    (tmp_path / "a.parity.json").touch()
    with pytest.raises(UserError, match=r"a\.parity\.json exists and is never overwritten"):
        export_onnx(file, tmp_path / "a.onnx")
    assert not (tmp_path / "a.onnx").exists()
