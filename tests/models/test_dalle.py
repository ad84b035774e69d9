from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from hardpatch.models.dalle import DalleTokenizer
from tests.models.small import PIXELS, small_dalle


def published_logits(state: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """Compute the published forward pass layer by layer: [B, 3, H, W] in [0, 1] to logits."""

    def conv(name: str, x: Tensor) -> Tensor:
        weight = state[f"blocks.{name}.w"]
        return F.conv2d(x, weight, state[f"blocks.{name}.b"], padding=(weight.shape[-1] - 1) // 2)

    x = conv("input", 0.8 * images + 0.1)
    for group in (1, 2, 3, 4):
        for block in (1, 2):
            name = f"group_{group}.block_{block}"
            branch = x
            for k in (1, 2, 3, 4):
                branch = conv(f"{name}.res_path.conv_{k}", branch.relu())
            identity = conv(f"{name}.id_path", x) if group > 1 and block == 1 else x
            x = identity + branch / 64
        if group < 4:
            x = F.max_pool2d(x, kernel_size=2)
    return conv("output.conv", x.relu())


def test_names_and_shapes_are_the_published_ones() -> None:
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


def test_logits_equal_the_published_forward_pass() -> None:
    model = small_dalle()
    images = PIXELS.float() / 255
    expected = published_logits(model.state_dict(), images)
    torch.testing.assert_close(model.logits(images), expected)
    tokens = model.tokens(PIXELS, (6, 4))
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens, expected.argmax(dim=1).reshape(2, 24))
    assert len(tokens.unique()) > 2


def test_encoder_sees_112_pixels_for_196_tokens() -> None:
    pixels = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    model = small_dalle()
    halved = F.interpolate(pixels.float() / 255, (112, 112), mode="bicubic", antialias=True).clamp(0, 1)
    assert torch.equal(
        model.tokens(pixels, (14, 14)), published_logits(model.state_dict(), halved).argmax(1).flatten(1)
    )
