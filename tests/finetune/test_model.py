"""The network of fine-tuning, against its steps written out."""

import pytest
import torch

from hardpatch.finetune.model import Classifier
from hardpatch.models.encoder_settings import build_encoder, encoder_settings
from hardpatch.models.positions import resample_positions
from tests.finetune.small import small_classifier


def test_the_classifier_step_by_step() -> None:
    model = small_classifier().eval()
    torch.nn.init.normal_(model.head.weight)
    torch.nn.init.normal_(model.fc_norm.weight)
    pixels = torch.randint(0, 256, (2, 3, 16, 24), dtype=torch.uint8)
    images = torch.stack([(pixels[:, c] / 255 - model.mean[c]) / model.std[c] for c in range(3)], dim=1)
    assert torch.allclose(model.normalize(pixels), images, atol=1e-6)
    encoder = model.encoder
    tokens = encoder.patch_embed.proj(images).flatten(2).transpose(1, 2) + encoder.positions
    tokens = torch.cat([encoder.cls_token.expand(2, -1, -1), tokens], dim=1)
    for block in encoder.blocks:
        tokens = block(tokens)
    mean = tokens[:, 1:].sum(dim=1) / 24  # neither class token nor the norm of pre-training
    normed = (mean - mean.mean(1, keepdim=True)) / (mean.var(1, keepdim=True, unbiased=False) + 1e-6).sqrt()
    scores = (normed * model.fc_norm.weight + model.fc_norm.bias) @ model.head.weight.T + model.head.bias
    assert torch.allclose(model(images), scores, atol=1e-4)


def test_everything_is_trained_and_drop_path_rises() -> None:
    for model in (small_classifier(), small_classifier(relative=True)):
        assert [block.drop_path for block in model.encoder.blocks] == pytest.approx([0.0, 0.1, 0.2])
        torch.nn.init.normal_(model.head.weight)
        model.train()(torch.randn(4, 3, 16, 24)).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_the_first_scores_are_nearly_zero() -> None:
    assert small_classifier()(torch.randn(4, 3, 16, 24)).abs().max() < 1e-3


@pytest.mark.parametrize("relative", [False, True])
def test_another_image_size(relative: bool) -> None:
    before, model = small_classifier(relative=relative), small_classifier(relative=relative, image_size=(32, 32))
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    if not relative:
        assert before.encoder.positions is not None
        assert model.encoder.positions is not None
        expected = resample_positions(before.encoder.positions, (4, 6), (8, 8))
        assert torch.equal(model.encoder.positions, expected)
        assert isinstance(model.encoder.positions, torch.nn.Parameter)
    again = Classifier(build_encoder(encoder_settings(model.encoder)), 3, mean=[0] * 3, std=[1] * 3)
    again.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(again.eval()(images), model.eval()(images))
    with pytest.raises(ValueError, match="divisor of the image size 30x30"):
        small_classifier(relative=relative, image_size=(30, 30))
