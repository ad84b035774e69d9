"""Classifiers of other libraries: the encoder is read, and a line says that its head is not."""

import logging
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import hardpatch

MICRO = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}


@torch.no_grad()
@pytest.mark.parametrize(("pool", "left_out"), [("avg", "fc_norm, head"), ("token", "head")])
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_a_fine_tuned_file_gives_its_encoder(
    pool: str, left_out: str, ending: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """MAE's ``mae_finetuned_*.pth`` is timm's network with the mean of the tokens before its norm."""
    torch.manual_seed(0)
    network = timm.models.vision_transformer.VisionTransformer(**MICRO, global_pool=pool).eval()  # type: ignore[arg-type]
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    file = tmp_path / f"mae_finetuned{ending}"
    if ending == ".pth":
        torch.save({"model": network.state_dict()}, file)
    else:
        save_file(network.state_dict(), file)
    caplog.set_level(logging.INFO, "hardpatch")
    model = hardpatch.load(file, heads=3)
    assert f"{file}: the encoder is read, without what follows it: {left_out}" in caplog.messages
    images = torch.randn(2, 3, 32, 32)
    expected = network.forward_features(images)
    tokens = model.encode(images)
    assert (tokens - expected).abs().max() <= 1e-5 * expected.abs().max()
    pooled = tokens[:, 1:].mean(dim=1) if pool == "avg" else tokens[:, 0]
    torch.testing.assert_close(network.head(network.fc_norm(pooled)), network(images), rtol=1e-4, atol=1e-4)
