import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hardpatch.models.discrete_vae import DiscreteVAE
from tests.models.small import PIXELS, small_vae


@settings(max_examples=20)
@given(patch_size=st.sampled_from([1, 2, 3, 4, 6, 7, 8, 14, 16]), rows=st.integers(1, 4), columns=st.integers(1, 4))
def test_every_patch_has_a_token_and_is_reconstructed(patch_size: int, rows: int, columns: int) -> None:
    model = small_vae(patch_size).eval()
    images = torch.rand(2, 3, rows * patch_size, columns * patch_size)
    with torch.no_grad():
        output = model(images)
    assert output.logits.shape == (2, 24, rows, columns)
    assert output.images.shape == images.shape


def test_forward_in_eval_mode_reconstructs_from_the_tokens() -> None:
    model = small_vae().eval()
    with torch.no_grad():
        output, colder = model(PIXELS.float() / 255), model(PIXELS.float() / 255, temperature=0.1)
        tokens = model.tokens(PIXELS, (6, 4))
        assert torch.equal(output.images, model.decode(tokens, (6, 4)))
    assert torch.equal(output.images, colder.images)
    assert torch.equal(tokens, output.logits.argmax(dim=1).reshape(2, 24))
    assert len(tokens.unique()) > 2


def test_training_decodes_a_drawn_token_and_all_entries_learn() -> None:
    model = small_vae().train()
    output = model(PIXELS.float() / 255, temperature=20.0, generator=torch.Generator().manual_seed(3))
    noise = -torch.empty(output.logits.shape).exponential_(generator=torch.Generator().manual_seed(3)).log()
    drawn = (output.logits + noise).argmax(dim=1)
    torch.testing.assert_close(output.images, model.decode(drawn.flatten(1), (6, 4)))
    # Entries that were not drawn, and the encoder, have a gradient only through the softmax over all entries.
    output.images.square().mean().backward()
    gradient = model.get_parameter("encoder.0.weight").grad
    assert gradient is not None
    assert gradient.abs().max() > 0
    assert model.codebook.grad is not None
    assert (model.codebook.grad.abs().amax(dim=1) > 0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patch_size": 0}, "patch_size: expected 1 or more, got 0"),
        ({"vocabulary": 1}, "vocabulary: expected 2 to 8192, got 1"),
        ({"vocabulary": 8193}, "vocabulary: expected 2 to 8192, got 8193"),
        ({"width": 20}, "width: expected a multiple of 8, got 20"),
    ],
)
def test_sizes_out_of_range(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiscreteVAE(**arguments)
