"""The shared relative position bias of BEiT and SimMIM, copied to every block for fine-tuning."""

import torch

from hardpatch.models.encoder import Encoder
from hardpatch.models.encoder_settings import build_encoder, encoder_settings
from hardpatch.models.transfer import unshare_relative_bias
from hardpatch.train.optimizer import layer_of
from tests.finetune.small import small_classifier

IMAGES = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(1))


def shared_encoder() -> Encoder:
    """Three blocks that share a bias far from zero."""
    encoder = small_classifier(relative=True).encoder.eval()
    assert encoder.relative_bias is not None
    torch.nn.init.normal_(encoder.relative_bias.table)
    return encoder


def test_the_copies_change_no_output_and_are_trained_apart() -> None:
    encoder = shared_encoder()
    larger = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before, before_larger = encoder(IMAGES), encoder(larger)
        assert unshare_relative_bias(encoder)
        assert torch.equal(encoder(IMAGES), before)
        assert torch.equal(encoder(larger), before_larger)
    assert not unshare_relative_bias(encoder)
    encoder(IMAGES).square().mean().backward()
    tables = {name: value for name, value in encoder.named_parameters() if name.endswith("table")}
    assert list(tables) == [f"blocks.{block}.relative_bias.table" for block in range(3)]
    assert [layer_of(f"encoder.{name}", 3) for name in tables] == [1, 2, 3]
    first, *others = (table.grad for table in tables.values())
    assert first is not None
    for other in others:
        assert other is not None
        assert other.abs().sum() > 0
        assert not torch.equal(first, other)


def test_both_forms_are_rebuilt_from_their_settings() -> None:
    encoder = shared_encoder()
    for _ in range(2):  # an earlier run shares the bias, a new one does not
        again = build_encoder(encoder_settings(encoder))
        again.norm = torch.nn.Identity()  # type: ignore[assignment]
        again.load_state_dict(encoder.state_dict())
        assert torch.equal(again.eval()(IMAGES), encoder(IMAGES))
        unshare_relative_bias(encoder)


def test_an_encoder_without_a_relative_bias_stays_as_it_is() -> None:
    encoder = small_classifier().encoder
    assert not unshare_relative_bias(encoder)
    assert not [name for name, _ in encoder.named_parameters() if "relative" in name]
