"""The layout of HPM's and MAE's reference code: there and back to the bit, and what it cannot hold."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import hardpatch
from hardpatch.errors import UserError
from hardpatch.export.run import export_reference
from hardpatch.patches import to_indices
from tests.export.runs import run_of
from tests.golden import write_golden


def beside(path: Path, **values: Any) -> Path:
    path.with_name("config.json").write_text(json.dumps(values))
    return path


@torch.no_grad()
@pytest.mark.parametrize("name", ["hpm_tiny", "mae_tiny"])
def test_reference_to_ours_to_reference(name: str, tmp_path: Path) -> None:
    path = write_golden(tmp_path) / f"{name}.safetensors"
    golden = load_file(path)
    result = export_reference(path, tmp_path / "out.pth", heads=3, decoder_heads=4)
    assert result.difference is not None
    assert result.difference.random == 0
    written = torch.load(tmp_path / "out.pth", weights_only=True)
    model = {key.removeprefix("model."): value for key, value in golden.items() if key.startswith("model.")}
    assert sorted(written["model"]) == sorted(model)
    assert [key for key in model if not torch.equal(model[key], written["model"][key])] == []
    again = export_reference(tmp_path / "out.pth", tmp_path / "again.pth", heads=3, decoder_heads=4)
    twice = torch.load(again.path, weights_only=True)["model"]
    assert all(torch.equal(value, twice[key]) for key, value in written["model"].items())


@torch.no_grad()
def test_a_run_reads_the_same_from_the_layout(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", data={"image_size": [16, 24]})
    export_reference(run, tmp_path / "out.pth")
    beside(tmp_path / "out.pth", num_attention_heads=4, decoder_num_attention_heads=2, image_size=[16, 24])
    ours, theirs = hardpatch.load(run), hardpatch.load(tmp_path / "out.pth")
    images, mask = torch.randn(2, 3, 16, 24), torch.arange(24).expand(2, -1) % 2 == 0
    patches = to_indices(mask)
    assert torch.equal(ours.predict_loss(images), theirs.predict_loss(images))
    latent = ours.encode(images, patches)
    assert torch.equal(latent, theirs.encode(images, patches))
    assert torch.equal(ours.reconstruct(latent, patches), theirs.reconstruct(latent, patches))


def test_other_hosts_give_their_encoder_or_are_refused(tmp_path: Path) -> None:
    run = run_of(tmp_path / "ibot", "ibot", model={"positions": "learned"}, method={"mask_ratio": 0.5})
    result = export_reference(run, tmp_path / "out.pth")
    assert "only the encoder goes" in result.report()[0]
    assert "host ibot" in result.report()[0]
    with pytest.raises(UserError, match="a relative position bias") as error:
        export_reference(run_of(tmp_path / "beit", "beit", model={"positions": "relative"}), tmp_path / "beit.pth")
    assert "expected --to timm" in str(error.value)
    assert not (tmp_path / "beit.pth").exists()
    with pytest.raises(UserError, match=r"ends in \.pth"):
        export_reference(run, tmp_path / "folder")
