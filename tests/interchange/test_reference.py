import argparse
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close

import hardpatch
from hardpatch.errors import UserError
from hardpatch.interchange.load import load_pair


@pytest.fixture
def golden(golden_folder: Path) -> dict[str, Tensor]:
    return load_file(golden_folder / "hpm_tiny.safetensors")


def reference_state(golden: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    return {prefix + key.removeprefix("model."): value for key, value in golden.items() if key.startswith("model.")}


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_checkpoint_of_the_reference(tmp_path: Path, golden: dict[str, Tensor], prefix: str) -> None:
    student, teacher = reference_state(golden, prefix), reference_state(golden, prefix)
    name = f"{prefix}decoder_norm_losspred.bias"
    student[name] = student[name] + 1
    path = tmp_path / "checkpoint.pth"
    torch.save({"state_dict": student, "ema_state_dict": teacher, "epoch": 3, "args": argparse.Namespace(lr=0.1)}, path)
    model = hardpatch.load(path, "teacher")
    images, mask = golden["images"], golden["mask"]
    assert_close(model.predict_loss(images), golden["teacher.loss_pred"], rtol=1e-4, atol=1e-5)
    latent = model.encode(images, mask)
    assert_close(latent, golden["latent"], rtol=1e-4, atol=1e-5)
    expected = golden["pixels_of_masked"]  # of the first image, or of all
    assert_close(model.reconstruct(latent, mask)[: len(expected)], expected, rtol=1e-4, atol=1e-5)
    one, other = load_pair(path)
    assert not torch.allclose(one.predict_loss(images), other.predict_loss(images))
    assert not any(p.requires_grad for p in model.parameters())


@torch.no_grad()
def test_bare_tensors_in_a_safetensors_file(golden_folder: Path, tmp_path: Path, golden: dict[str, Tensor]) -> None:
    model = hardpatch.load(golden_folder / "hpm_tiny.safetensors")
    assert_close(model.predict_loss(golden["images"]), golden["teacher.loss_pred"], rtol=1e-4, atol=1e-5)


def test_heads_and_targets_can_be_said(golden_folder: Path) -> None:
    path = golden_folder / "mae_tiny.safetensors"
    golden = load_file(path)
    model = hardpatch.load(path, heads=3, decoder_heads=4, normalize_pixels=True)
    assert_close(model(golden["images"], golden["mask"]).loss, golden["loss"].squeeze(), rtol=1e-4, atol=1e-5)
    assert not model.has_predictor
    with pytest.raises(UserError, match="heads: expected a divisor of the width 96, got 7"):
        hardpatch.load(path, heads=7)


class Malicious:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("executed",))


def test_code_in_a_pickle_is_never_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": Malicious()}, path)
    with pytest.raises(UserError, match="could run code"):
        hardpatch.load(path)
    path.write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(UserError, match="RUN: "):
        hardpatch.load(path)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "has no `state_dict` of tensors; found: epoch"),
        ({"state_dict": {"fc.weight": torch.zeros(2, 2)}}, "has no embedding of patches by a name that is known"),
    ],
)
def test_other_checkpoints_are_rejected(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "other.pth"
    torch.save(content, path)
    with pytest.raises(UserError, match=message):
        hardpatch.load(path)


def test_missing_and_unknown_keys_are_named(tmp_path: Path, golden: dict[str, Tensor]) -> None:
    state = reference_state(golden)
    state["surprise"] = state.pop("norm.bias")
    torch.save({"state_dict": state}, tmp_path / "odd.pth")
    with pytest.raises(UserError, match=r"unknown \['surprise'\], missing \['norm.bias'\]"):
        hardpatch.load(tmp_path / "odd.pth")
