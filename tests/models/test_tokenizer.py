import json
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from hardpatch.errors import UserError
from hardpatch.models.tokenizer import DalleTokenizer, DiscreteVAE, load_tokenizer

PIXELS = torch.randint(0, 256, (2, 3, 6, 4), generator=torch.Generator().manual_seed(0))
PIXELS = PIXELS.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3).byte()
"""6 x 4 patches of 8 px, a color each."""


def small_dalle() -> DalleTokenizer:
    """The published layout, 16 times narrower, with biases that count."""
    torch.manual_seed(0)
    model = DalleTokenizer(width=16, vocabulary=40)
    for name, value in model.named_parameters():
        if name.endswith(".b"):
            torch.nn.init.normal_(value, std=0.1)
    return model


def small_vae(patch_size: int = 8) -> DiscreteVAE:
    torch.manual_seed(0)
    return DiscreteVAE(patch_size, vocabulary=24, width=16)


def dalle_by_hand(state: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """The published forward pass, written down layer by layer: [B, 3, H, W] in [0, 1] to logits."""

    def conv(name: str, x: Tensor) -> Tensor:
        weight = state[f"blocks.{name}.w"]
        return F.conv2d(x, weight, state[f"blocks.{name}.b"], padding=(weight.shape[-1] - 1) // 2)

    x = conv("input", 0.8 * images + 0.1)
    for group in (1, 2, 3, 4):
        for block in (1, 2):
            here = f"group_{group}.block_{block}"
            path = x
            for k in (1, 2, 3, 4):
                path = conv(f"{here}.res_path.conv_{k}", path.relu())
            kept = conv(f"{here}.id_path", x) if group > 1 and block == 1 else x
            x = kept + path / 64
        if group < 4:
            x = F.max_pool2d(x, kernel_size=2)
    return conv("output.conv", x.relu())


def test_dalle_has_the_published_names_and_shapes() -> None:
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in DalleTokenizer().state_dict().items()}
    assert len(shapes) == 2 * (1 + 8 * 4 + 3 + 1)
    assert shapes["blocks.input.w"] == (256, 3, 7, 7)
    assert shapes["blocks.group_1.block_1.res_path.conv_1.w"] == (64, 256, 3, 3)
    assert shapes["blocks.group_2.block_1.res_path.conv_3.w"] == (128, 128, 3, 3)
    assert shapes["blocks.group_2.block_1.id_path.w"] == (512, 256, 1, 1)
    assert shapes["blocks.group_4.block_1.id_path.b"] == (2048,)
    assert shapes["blocks.group_4.block_2.res_path.conv_4.w"] == (2048, 512, 1, 1)
    assert shapes["blocks.output.conv.w"] == (8192, 2048, 1, 1)
    assert "blocks.group_1.block_1.id_path.w" not in shapes
    assert "blocks.group_3.block_2.id_path.w" not in shapes


def test_dalle_equals_the_published_forward_pass() -> None:
    model = small_dalle()
    images = PIXELS.float() / 255
    expected = dalle_by_hand(model.state_dict(), images)
    torch.testing.assert_close(model.logits(images), expected)
    tokens = model.tokens(PIXELS, (6, 4))
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens, expected.argmax(dim=1).reshape(2, 24))
    assert len(tokens.unique()) > 2


def test_dalle_sees_112_pixels_for_beits_196_tokens() -> None:
    pixels = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    model = small_dalle()
    halved = F.interpolate(pixels.float() / 255, (112, 112), mode="bicubic", antialias=True).clamp(0, 1)
    assert torch.equal(model.tokens(pixels, (14, 14)), dalle_by_hand(model.state_dict(), halved).argmax(1).flatten(1))


@settings(max_examples=20)
@given(patch_size=st.sampled_from([1, 2, 3, 4, 6, 7, 8, 14, 16]), rows=st.integers(1, 4), columns=st.integers(1, 4))
def test_every_patch_gets_a_word_and_words_give_back_the_images_size(patch_size: int, rows: int, columns: int) -> None:
    model = small_vae(patch_size).eval()
    images = torch.rand(2, 3, rows * patch_size, columns * patch_size)
    with torch.no_grad():
        coded = model(images)
    assert coded.logits.shape == (2, 24, rows, columns)
    assert coded.images.shape == images.shape


def test_in_eval_mode_forward_rebuilds_from_the_tokens() -> None:
    model = small_vae().eval()
    with torch.no_grad():
        first, again = model(PIXELS.float() / 255), model(PIXELS.float() / 255, temperature=0.1)
        tokens = model.tokens(PIXELS, (6, 4))
        assert torch.equal(first.images, model.decode(tokens, (6, 4)))
    assert torch.equal(first.images, again.images)
    assert torch.equal(tokens, first.logits.argmax(dim=1).reshape(2, 24))
    assert len(tokens.unique()) > 2


def test_in_training_one_drawn_word_is_painted_and_all_learn() -> None:
    model = small_vae().train()
    coded = model(PIXELS.float() / 255, temperature=20.0, generator=torch.Generator().manual_seed(3))
    noise = -torch.empty_like(coded.logits).exponential_(generator=torch.Generator().manual_seed(3)).log()
    drawn = (coded.logits + noise).argmax(dim=1)
    torch.testing.assert_close(coded.images, model.decode(drawn.flatten(1), (6, 4)))
    # Only the way through all words leads back to the encoder and to words that were not drawn.
    coded.images.square().mean().backward()
    first = model.get_parameter("encoder.0.weight").grad
    assert first is not None
    assert first.abs().max() > 0
    assert model.codebook.grad is not None
    assert (model.codebook.grad.abs().amax(dim=1) > 0).all()


@pytest.mark.parametrize("model", [small_dalle(), small_vae()], ids=["dalle", "vae"])
def test_tokens_are_the_same_within_mixed_precision(model: DalleTokenizer | DiscreteVAE) -> None:
    plain = model.tokens(PIXELS, (6, 4))
    assert not plain.requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.tokens(PIXELS, (6, 4)), plain)


@pytest.mark.parametrize("pixels", [PIXELS.float(), PIXELS[0], PIXELS[:, :1]])
def test_tokens_of_something_else(pixels: Tensor) -> None:
    with pytest.raises(ValueError, match=r"pixels: expected uint8 \[B, 3, H, W\], got torch"):
        small_vae().tokens(pixels, (6, 4))


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


@pytest.mark.parametrize("name", ["encoder.pt", "encoder.safetensors"])
def test_weights_of_dalle_are_recognized(tmp_path: Path, name: str) -> None:
    model = small_dalle()
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    (save_file if name.endswith("safetensors") else torch.save)(state, tmp_path / name)
    loaded = load_tokenizer(tmp_path / name)
    assert isinstance(loaded, DalleTokenizer)
    assert loaded.vocabulary == 40
    assert torch.equal(loaded.tokens(PIXELS, (6, 4)), model.tokens(PIXELS, (6, 4)))


def refused(path: Path, message: str) -> None:
    with pytest.raises(UserError, match=r"method\.tokenizer: .*" + re.escape(message)) as caught:
        load_tokenizer(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_files_are_refused_in_one_line(tmp_path: Path) -> None:
    refused(tmp_path / "missing.pt", "is no file")
    (tmp_path / "code.pt").write_bytes(pickle.dumps({"a": print}))
    refused(tmp_path / "code.pt", "could run code")
    torch.save(small_dalle(), tmp_path / "module.pkl")  # as the encoder was published
    refused(tmp_path / "module.pkl", "could run code and is not opened; expected tensors only")
    torch.save({"blocks.input.w": torch.zeros(3), "args": Path("x")}, tmp_path / "more.pt")
    refused(tmp_path / "more.pt", "could run code")
    torch.save([torch.zeros(3)], tmp_path / "list.pt")
    refused(tmp_path / "list.pt", "is no state dict")
    for name, message in (("text.safetensors", "not a readable safetensors file"), ("text.pt", "")):
        (tmp_path / name).write_text("nothing of the kind")
        refused(tmp_path / name, message)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    state = dict(small_dalle().state_dict())
    path = tmp_path / "weights.pt"
    torch.save({"conv.weight": torch.zeros(3)}, path)
    refused(path, "is no tokenizer; expected a file of hardpatch tokenizer, or the state dict of DALL-E's encoder")
    torch.save({**state, "decoder": torch.zeros(3)}, path)
    refused(path, "decoder should be absent and is [3]")
    name = "blocks.group_3.block_1.id_path.w"
    torch.save({key: value for key, value in state.items() if key != name}, path)
    refused(path, f"{name} should be [64, 32, 1, 1] and is absent")
    torch.save({**state, name: torch.zeros(5)}, path)
    refused(path, f"{name} should be [64, 32, 1, 1] and is [5]")
    torch.save({**state, "blocks.input.w": torch.tensor(0.0)}, path)
    refused(path, "does not say")


def test_a_runs_weights_are_no_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"student.weight": torch.zeros(3)}, path, {"hardpatch": json.dumps({"step": 3})})
    refused(path, "is no tokenizer")
    save_file({"codebook": torch.zeros(3)}, path, {"hardpatch_tokenizer": json.dumps({"kind": "discrete_vae"})})
    refused(path, "does not say")
