"""The image tokenizer of DALL-E, which BEiT uses."""

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hardpatch.models.pixels import resize_to_grid


class DalleTokenizer(nn.Module):
    """The encoder of DALL-E's discrete VAE (Ramesh et al. 2021, App. A.2): a residual network of stride 8.

    Parameters have the names and shapes of the published encoder. As there, everything but the last layer runs in half
    precision on a GPU.

    Args:
        width: channels of the first group, a multiple of 4; the four groups have 1, 2, 4 and 8 times this width.
        vocabulary: number of visual tokens.
        blocks: residual blocks of each of the four groups.
    """

    stride = 8

    def __init__(self, width: int = 256, vocabulary: int = 8192, blocks: int = 2) -> None:
        super().__init__()
        if width % 4 or width < 4:
            raise ValueError(f"width: expected a multiple of 4, got {width}")
        self.vocabulary = vocabulary
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        groups: dict[str, nn.Module] = {"input": _Conv(3, width, 7)}
        for k in range(1, 5):
            group: dict[str, nn.Module] = {
                f"block_{b + 1}": _Block(widths[k - 1 if b == 0 else k], widths[k], 4 * blocks) for b in range(blocks)
            }
            if k < 4:
                group["pool"] = nn.MaxPool2d(2)
            groups[f"group_{k}"] = nn.Sequential(OrderedDict(group))
        groups["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=_Conv(widths[4], vocabulary, 1, exact=True)))
        self.blocks = nn.Sequential(OrderedDict(groups))
        self.requires_grad_(False).eval()

    def logits(self, images: Tensor) -> Tensor:
        """Score every token: ``images [B, 3, H, W]`` in [0, 1] to float32 ``[B, vocabulary, H / 8, W / 8]``."""
        # [0, 1] is mapped to [0.1, 0.9], because the logit-Laplace density has no mass at 0 and 1 (App. A.3).
        images = (1 - 2 * 0.1) * images + 0.1
        device = images.device.type
        with torch.autocast(device, torch.float16, enabled=device == "cuda"):
            return self.blocks(images)

    @torch.no_grad()
    def tokens(self, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
        """Tokenize images, see :class:`~hardpatch.models.tokenizer.Tokenizer`.

        At 224 px and a 14 x 14 grid the encoder sees 112 px, as in BEiT.
        """
        return self.logits(resize_to_grid(pixels, grid, self.stride)).argmax(dim=1).flatten(1)


class _Conv(nn.Module):
    """A convolution of odd size that keeps height and width; if ``exact``, in float32 even under autocast."""

    def __init__(self, inputs: int, outputs: int, size: int, *, exact: bool = False) -> None:
        super().__init__()
        self.exact = exact
        self.w = nn.Parameter(torch.randn(outputs, inputs, size, size) / math.sqrt(inputs * size**2))
        self.b = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        if self.exact:
            with torch.autocast(x.device.type, enabled=False):
                return F.conv2d(x.float(), self.w, self.b, padding="same")
        return F.conv2d(x, self.w, self.b, padding="same")


class _Block(nn.Module):
    """A residual block with a bottleneck; its branch is divided by the square of the network's number of blocks."""

    def __init__(self, inputs: int, outputs: int, depth: int) -> None:
        super().__init__()
        self.gain = 1 / depth**2
        inner = outputs // 4
        shapes = [(inputs, inner, 3), (inner, inner, 3), (inner, inner, 3), (inner, outputs, 1)]
        branch: dict[str, nn.Module] = {}
        for k, (fan_in, fan_out, size) in enumerate(shapes, 1):
            branch |= {f"relu_{k}": nn.ReLU(), f"conv_{k}": _Conv(fan_in, fan_out, size)}
        self.res_path = nn.Sequential(OrderedDict(branch))
        self.id_path = nn.Identity() if inputs == outputs else _Conv(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.id_path(x) + self.gain * self.res_path(x)
