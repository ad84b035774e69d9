"""Fine-tuned networks in other libraries: scores on photographs, names of classes, and what goes where."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from torch.testing import assert_close

import hardpatch
from hardpatch.errors import UserError
from tests.export.classifiers import CLASSES, classifier_file, photographs, segmenter_file

KINDS: dict[str, dict[str, Any]] = {
    "mean": {},
    "class": {"pool": "class"},
    "probe, mean": {"frozen": True},
    "probe, class": {"frozen": True, "pool": "class"},
    "relative positions": {"positions": "relative", "layer_scale": 0.1},
}
REFUSED = {
    ("probe, mean", "hf"): "no class of transformers has the head of a linear probe on the mean of tokens",
    ("mean", "torchvision"): "a mean of tokens before its head",
    ("probe, mean", "torchvision"): "a mean of tokens before its head",
    ("relative positions", "torchvision"): "a relative position bias",
}
HUGGING_FACE = {"mean": "BeitForImageClassification", "relative positions": "BeitForImageClassification"}


@torch.no_grad()
@pytest.mark.parametrize("to", ["timm", "hf", "torchvision"])
@pytest.mark.parametrize("kind", KINDS)
def test_scores_of_photographs(kind: str, to: Any, tmp_path: Path) -> None:
    file = classifier_file(tmp_path / "run", **KINDS[kind])
    if (message := REFUSED.get((kind, to))) is not None:
        with pytest.raises(UserError, match=message):
            hardpatch.export(file, to, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return
    result = hardpatch.export(file, to, tmp_path / "out")
    classifier = hardpatch.load_classifier(file)
    images = classifier.model.normalize(photographs((32, 32)))
    expected = classifier.model(images)
    assert expected.abs().max() > 0.1
    if to == "timm":
        network: Any = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
        scores = network(images)
        assert json.loads((tmp_path / "out" / "config.json").read_text())["label_names"] == list(CLASSES)
    elif to == "hf":
        name = HUGGING_FACE.get(kind, "ViTForImageClassification")
        network = getattr(transformers, name).from_pretrained(tmp_path / "out").eval()
        scores = network(images).logits
        assert network.config.id2label == dict(enumerate(CLASSES))
        assert f"transformers.{name}" in result.code
        automatic = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out")
        assert type(automatic).__name__ == name
    else:
        import functools

        import torchvision  # type: ignore[import-untyped]

        names: dict[str, Any] = {"torchvision": torchvision, "functools": functools, "torch": torch}
        exec(result.code, names)
        scores = names["model"].eval()(images)
    assert_close(scores, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert torch.equal(scores.argmax(1), expected.argmax(1))
    assert "5 classes" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("to", ["timm", "hf"])
def test_of_a_segmenter_the_encoder_goes_and_it_is_said(to: Any, tmp_path: Path) -> None:
    run = segmenter_file(tmp_path / "run")
    result = hardpatch.export(run, to, tmp_path / "out")
    assert "only the encoder of the segmenter goes, without its 5 classes; --to onnx holds all of it" in result.report()
    assert "only the encoder of the segmenter goes" in (tmp_path / "out" / "README.md").read_text()
    images = hardpatch.load(run).normalize(photographs((32, 40)))
    expected = hardpatch.load(run).encode(images)
    assert_close(hardpatch.load(tmp_path / "out").encode(images), expected, rtol=0, atol=1e-5)


def test_a_classifier_has_no_place_in_the_reference(tmp_path: Path) -> None:
    file = classifier_file(tmp_path / "run")
    with pytest.raises(UserError, match="the reference's layout has no classifier; expected --to timm"):
        hardpatch.export(file, "reference", tmp_path / "out.pth")
