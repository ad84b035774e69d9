"""Runs of finetune, segment and detect as RUN of other verbs: the encoder in them, to the bit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

import hardpatch
from hardpatch.cli import main
from hardpatch.interchange.load import weights_file
from hardpatch.methods.encoder_only import EncoderOnly
from tests.end_to_end import test_finetune

MACHINE = ("--workers", "0", "--device", "cpu")


@torch.no_grad()
def test_features_are_those_inside_the_classifier(finetuned: Path, images: Path, tmp_path: Path) -> None:
    run, out = finetuned / "classifier", tmp_path / "vectors.parquet"
    assert main(["embed", str(run), str(images), "--out", str(out), *MACHINE]) == 0
    vectors = torch.tensor(pq.read_table(out)["embedding"].to_pylist())
    loaded = hardpatch.load_finetuned(run)
    classifier = hardpatch.load_classifier(run).model
    scores = classifier.head(classifier.fc_norm(vectors))
    predicted = torch.stack([prediction.scores for prediction in loaded.predict(images)])
    assert torch.equal(scores, predicted)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    model = hardpatch.load(run)
    tokens = model.encode(model.normalize(pixels))
    assert torch.equal(tokens[:, 1:].mean(dim=1), classifier.features(classifier.normalize(pixels)))
    assert isinstance(model.host, EncoderOnly)
    assert not any(parameter.requires_grad for parameter in model.parameters())


@torch.no_grad()
def test_the_encoders_of_segmenters_and_detectors(finetuned: Path) -> None:
    pixels = torch.randn(2, 3, 32, 32)
    segmenter = hardpatch.load_segmenter(finetuned / "segmenter").model.encoder
    for run in (finetuned / "segmenter", weights_of_checkpoint(finetuned / "segmenter")):
        assert torch.equal(hardpatch.load(run).encode(pixels), segmenter(pixels))
    saved = weights_of_checkpoint(finetuned / "segmenter")
    networks = [hardpatch.load_finetuned(run) for run in (finetuned / "segmenter", saved)]
    image = pixels[0].abs().mul(100).clamp_max(255).byte().permute(1, 2, 0).numpy()
    maps = [network.predict([image])[0] for network in networks]
    assert (maps[0] == maps[1]).all()
    detector: Any = hardpatch.load_detector(finetuned / "detector").model
    own = detector.backbone.encoder.state_dict()
    loaded = hardpatch.load(finetuned / "detector").host.encoder
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, own[name]), name


@pytest.mark.parametrize(
    ("to", "out"), [("timm", "a.safetensors"), ("hf", "a"), ("torchvision", "b"), ("onnx", "a.onnx")]
)
def test_a_detector_gives_its_encoder(
    to: str, out: str, finetuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(finetuned / "detector"), "--to", to, "--out", str(tmp_path / out)]) == 0
    said = capsys.readouterr().out
    assert "only the encoder of the detector goes, without its 2 classes" in said
    assert "largest difference" in said  # of its outputs there; a difference beyond rounding ends the export


def weights_of_checkpoint(run: Path) -> Path:
    """Return the weights file of the newest checkpoint of a run."""
    return weights_file(max(run.glob("checkpoints/step_*")))


def test_other_verbs_take_them(
    finetuned: Path,
    images: Path,
    tmp_path: Path,
    fails: Callable[..., str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    sets = ("--train", str(images), "--val", str(images), *MACHINE)
    for kind in ("classifier", "segmenter", "detector"):
        assert main(["knn", str(finetuned / kind), *sets, "--no_cache", "--k", "3"]) == 0
        assert main(["info", str(finetuned / kind)]) == 0
        described = capsys.readouterr().out
        assert f"{kind}, trained by hardpatch" in described
        line = fails("score", finetuned / kind, images, "--out", tmp_path / "scores").splitlines()[-1]
        assert "expected weights with a decoder or a loss predictor" in line
    assert not (tmp_path / "scores").exists()
    copied = tmp_path / "segmenter.safetensors"  # a line about a file is said once
    shutil.copy(finetuned / "segmenter" / "segmenter.safetensors", copied)
    assert main(["knn", str(copied), *sets, "--no_cache", "--k", "3"]) == 0
    assert f"{copied}: the encoder of a segmenter of 3 classes, without its head" in capsys.readouterr().err
    assert "2: box, chest" in described
    assert main(test_finetune.command(finetuned / "classifier", images, tmp_path / "again", "--epochs", 1)) == 0
    assert json.loads((tmp_path / "again" / "result.json").read_text())["steps"] == 3
    assert "began with other weights" in fails(
        "knn", finetuned / "segmenter", *sets, "--weights", "random", "--no_cache"
    )
