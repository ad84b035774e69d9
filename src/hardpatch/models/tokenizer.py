"""Visual tokens: a word of a fixed vocabulary for every patch, which BEiT's student has to guess (Bao et al. 2022).

Two tokenizers: DALL-E's, which BEiT uses, for those who have its weights, and a small one to be trained on one's own
images (:mod:`hardpatch.pretrain.tokenizer`). Both are discrete variational autoencoders (Ramesh et al. 2021, Sec. 2.1).
"""

import json
import math
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from hardpatch.errors import UserError
from hardpatch.pickles import load_pickle

LARGEST_VOCABULARY = 8192
METADATA, KIND = "hardpatch_tokenizer", "discrete_vae"
FILE = "tokenizer.safetensors"
"""Name of the file in a folder of ``hardpatch tokenizer``."""
"""Where a :class:`DiscreteVAE`'s file says in its metadata what it is, and what it calls itself there."""

PIXEL_STD = 0.25
"""About the standard deviation of pixels in [0, 1]: inside, a discrete VAE works in units of it."""
SHARPNESS = 50.0
"""Logits per unit of cosine. With less the choice of a word is left to chance: in short trials its entropy stayed at
3 to 4 nats with 20 to 30, at 2 with 50, and the error was larger."""


class Tokenizer(Protocol):
    """Names every patch of an image by a word of a vocabulary."""

    vocabulary: int
    """number of words"""

    def tokens(self, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
        """The words of ``pixels`` (uint8 ``[B, 3, H, W]``) on a ``grid`` of (rows, columns): int64 ``[B, N]``.

        Patches run row by row. Without gradient, on the device of the pixels, which is the tokenizer's.
        """


class DalleTokenizer(nn.Module):
    """The encoder of DALL-E's discrete VAE (Ramesh et al. 2021, App. A.2): a residual network of stride 8.

    Parameters have the names and shapes of the published encoder. As there, everything but the last layer runs in half
    precision on a GPU.

    Args:
        width: channels of the first group, a multiple of 4; the groups have 1, 2, 4 and 8 times as many.
        vocabulary: number of words.
        blocks: residual blocks of each of the four groups.
    """

    stride = 8

    def __init__(self, width: int = 256, vocabulary: int = LARGEST_VOCABULARY, blocks: int = 2) -> None:
        super().__init__()
        if width % 4 or width < 4:
            raise ValueError(f"width: expected a multiple of 4, got {width}")
        self.vocabulary = vocabulary
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        parts: dict[str, nn.Module] = {"input": _Convolution(3, width, 7)}
        for k in range(1, 5):
            inside = {
                f"block_{b + 1}": _Block(widths[k - 1 if b == 0 else k], widths[k], 4 * blocks) for b in range(blocks)
            }
            pool = {"pool": nn.MaxPool2d(2)} if k < 4 else {}
            parts[f"group_{k}"] = nn.Sequential(OrderedDict({**inside, **pool}))
        parts["output"] = nn.Sequential(
            OrderedDict(relu=nn.ReLU(), conv=_Convolution(widths[4], vocabulary, 1, exact=True))
        )
        self.blocks = nn.Sequential(OrderedDict(parts))
        self.requires_grad_(False).eval()

    def logits(self, images: Tensor) -> Tensor:
        """A score for every word: ``images [B, 3, H, W]`` in [0, 1] to float32 ``[B, vocabulary, H / 8, W / 8]``."""
        # The ends of the range are kept free: the decoder's logit-Laplace density has none there (App. A.3).
        images = (1 - 2 * 0.1) * images + 0.1
        device = images.device.type
        with torch.autocast(device, torch.float16, enabled=device == "cuda"):
            return self.blocks(images)

    @torch.no_grad()
    def tokens(self, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
        """See :class:`Tokenizer`. At 224 px and a 14 x 14 grid the encoder sees 112 px, as in BEiT."""
        return self.logits(_resized(pixels, grid, self.stride)).argmax(dim=1).flatten(1)


class _Convolution(nn.Module):
    """An odd-sized convolution that keeps height and width; ``exact`` in float32 whatever the rest computes in."""

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
    """A residual block with a bottleneck; its path is scaled down by the square of the network's number of blocks."""

    def __init__(self, inputs: int, outputs: int, depth: int) -> None:
        super().__init__()
        self.gain = 1 / depth**2
        inner = outputs // 4
        shapes = [(inputs, inner, 3), (inner, inner, 3), (inner, inner, 3), (inner, outputs, 1)]
        path: dict[str, nn.Module] = {}
        for k, (into, out, size) in enumerate(shapes, 1):
            path |= {f"relu_{k}": nn.ReLU(), f"conv_{k}": _Convolution(into, out, size)}
        self.res_path = nn.Sequential(OrderedDict(path))
        self.id_path = nn.Identity() if inputs == outputs else _Convolution(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.id_path(x) + self.gain * self.res_path(x)


class Coded(NamedTuple):
    """What a :class:`DiscreteVAE` makes of a batch."""

    images: Tensor
    """the reconstruction, ``[B, 3, H, W]`` about [0, 1]"""
    logits: Tensor
    """a score for every word at every place, ``[B, vocabulary, rows, columns]``"""


class DiscreteVAE(nn.Module):
    """A small discrete variational autoencoder: every patch becomes one word of a codebook and is painted from it.

    The score of a word is the cosine between the encoder's vector and the word's (Yu et al. 2022, ViT-VQGAN, Sec. 3.2),
    so that no word can win by its length. In training the word is drawn by the Gumbel softmax (Jang et al. 2017),
    straight-through: the decoder sees one word, the gradient goes to all. In eval mode the likeliest word is taken and
    nothing is drawn, so that :meth:`forward` rebuilds from just the words that :meth:`tokens` gives.

    Args:
        patch_size: p in pixels, the total stride.
        vocabulary: number of words, 2 to 8192.
        width: channels at the words' resolution, a multiple of 8; half as many at each doubling of the resolution.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(self, patch_size: int = 8, vocabulary: int = 512, width: int = 64) -> None:
        super().__init__()
        if patch_size < 1:
            raise ValueError(f"patch_size: expected 1 or more, got {patch_size}")
        if not 2 <= vocabulary <= LARGEST_VOCABULARY:
            raise ValueError(f"vocabulary: expected 2 to {LARGEST_VOCABULARY}, got {vocabulary}")
        if width < 8 or width % 8:
            raise ValueError(f"width: expected a multiple of 8, got {width}")
        self.patch_size, self.vocabulary, self.width = patch_size, vocabulary, width
        strides = _strides(patch_size)
        widths = [3, *(max(width >> k, 8) for k in reversed(range(len(strides))))]
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for stride, fine, coarse in zip(strides, widths, widths[1:], strict=False):
            # A halving looks a pixel beyond its window, so that patches know of their neighbors' edges.
            size, padding = (4, 1) if stride == 2 else (stride, 0)
            down += [nn.Conv2d(fine, coarse, size, stride, padding), nn.ReLU()]
            up = [nn.ReLU(), nn.ConvTranspose2d(coarse, fine, size, stride, padding), *up]
        self.encoder = nn.Sequential(
            *down[:-1], _Residual(width), _Residual(width), nn.GroupNorm(1, width), nn.Conv2d(width, width, 1)
        )
        self.codebook = nn.Parameter(torch.randn(vocabulary, width))
        self.decoder = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), _Residual(width), _Residual(width), *up)

    def logits(self, images: Tensor) -> Tensor:
        """A score for every word: ``images [B, 3, H, W]`` in [0, 1] to ``[B, vocabulary, H / p, W / p]``."""
        found = F.normalize(self.encoder((images - 0.5) / PIXEL_STD), dim=1)
        return SHARPNESS * torch.einsum("bdrc,vd->bvrc", found, F.normalize(self.codebook, dim=1))

    def decode(self, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
        """The images ``[B, 3, H, W]``, about [0, 1], that words ``[B, N]`` on a grid of (rows, columns) stand for."""
        return self._paint(self._words()[tokens.unflatten(1, grid)].permute(0, 3, 1, 2))

    def forward(self, images: Tensor, temperature: float = 1.0, generator: torch.Generator | None = None) -> Coded:
        """Rebuild ``images [B, 3, H, W]``, values in [0, 1], from one word a patch.

        Args:
            images: of a height and width that the patch size divides.
            temperature: of the Gumbel softmax, in training only; the lower, the nearer its gradient to the word drawn.
            generator: on the images' device, draws the words in training.
        """
        logits = self.logits(images)
        if not self.training:
            return Coded(self.decode(logits.argmax(dim=1).flatten(1), (logits.shape[2], logits.shape[3])), logits)
        noise = -torch.empty_like(logits).exponential_(generator=generator).log()
        soft = ((logits + noise) / temperature).softmax(dim=1)
        drawn = torch.zeros_like(soft).scatter(1, soft.argmax(dim=1, keepdim=True), 1.0)
        codes = torch.einsum("bvrc,vd->bdrc", drawn + soft - soft.detach(), self._words())
        return Coded(self._paint(codes), logits)

    @torch.no_grad()
    def tokens(self, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
        """See :class:`Tokenizer`."""
        with torch.autocast(pixels.device.type, enabled=False):
            return self.logits(_resized(pixels, grid, self.patch_size)).argmax(dim=1).flatten(1)

    def _words(self) -> Tensor:
        """The codebook as the decoder sees it, ``[vocabulary, width]``, entries of unit size."""
        return F.normalize(self.codebook, dim=1) * math.sqrt(self.width)

    def _paint(self, codes: Tensor) -> Tensor:
        return PIXEL_STD * self.decoder(codes) + 0.5


class _Residual(nn.Module):
    """``x + path(x)``; the path begins at zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        last = nn.Conv2d(width, width, 1)
        nn.init.zeros_(last.weight)
        self.path = nn.Sequential(
            nn.GroupNorm(1, width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), last
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.path(x)


def _strides(patch_size: int) -> list[int]:
    """Halvings as long as there are any, then what is left in one: 8 is 2, 2, 2 and 14 is 2, 7."""
    strides = []
    while patch_size % 2 == 0:
        strides.append(2)
        patch_size //= 2
    return [*strides, patch_size] if patch_size > 1 or not strides else strides


def _resized(pixels: Tensor, grid: tuple[int, int], stride: int) -> Tensor:
    """uint8 ``[B, 3, H, W]`` -> float32 in [0, 1], ``stride`` pixels for each place of the grid."""
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
        raise ValueError(f"pixels: expected uint8 [B, 3, H, W], got {pixels.dtype} {list(pixels.shape)}")
    size = (grid[0] * stride, grid[1] * stride)
    images = pixels.float() / 255
    if images.shape[2:] == size:
        return images
    return F.interpolate(images, size, mode="bicubic", antialias=True).clamp(0, 1)


def load_tokenizer(path: str | Path, device: torch.device | str = "cpu") -> DalleTokenizer | DiscreteVAE:
    """Read a tokenizer, frozen and in eval mode: a file of ``hardpatch tokenizer``, or weights of DALL-E's encoder.

    Args:
        path: a folder of ``hardpatch tokenizer``, its ``.safetensors`` file, or a state dict saved by ``torch.save``;
            nothing in it is run.
        device: where the tokenizer goes.

    Raises:
        UserError: if the file is neither.
    """
    path = Path(path)
    if path.is_dir():
        path = path / FILE
    state, metadata = _read(path)
    tokenizer: DalleTokenizer | DiscreteVAE
    try:
        if metadata.get("kind") == KIND:
            tokenizer = DiscreteVAE(**{name: metadata[name] for name in ("patch_size", "vocabulary", "width")})
        elif metadata or not {"blocks.input.w", "blocks.output.conv.w"} <= state.keys():
            raise UserError(
                f"method.tokenizer: {path} is no tokenizer; expected a file of hardpatch tokenizer, or the state dict "
                f"of DALL-E's encoder (blocks.input.w, ...); it holds {', '.join(list(state)[:3]) or 'nothing'}"
            )
        else:
            blocks = sum(name.startswith("blocks.group_1.") and name.endswith(".conv_1.w") for name in state)
            width, vocabulary = state["blocks.input.w"].shape[0], state["blocks.output.conv.w"].shape[0]
            tokenizer = DalleTokenizer(width, vocabulary, blocks)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"method.tokenizer: {path} does not say what a tokenizer's file should: {error}") from None
    wanted = {name: list(value.shape) for name, value in tokenizer.state_dict().items()}
    given = {name: list(value.shape) for name, value in state.items()}
    for name in sorted(wanted.keys() | given.keys()):
        if wanted.get(name) != given.get(name):
            raise UserError(
                f"method.tokenizer: {path} does not fit: {name} should be {wanted.get(name, 'absent')} "
                f"and is {given.get(name, 'absent')}"
            )
    tokenizer.load_state_dict(state)
    return tokenizer.requires_grad_(False).eval().to(device)


def _read(path: Path) -> tuple[Mapping[str, Tensor], dict[str, Any]]:
    """Tensors and our metadata of a weights file."""
    if not path.is_file():
        raise UserError(f"method.tokenizer: {path} is no file; expected weights of a tokenizer")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, "pt") as file:
                ours = (file.metadata() or {}).get(METADATA, "{}")
                return {name: file.get_tensor(name) for name in file.keys()}, json.loads(ours)  # noqa: SIM118
        except (SafetensorError, OSError, json.JSONDecodeError) as error:
            raise UserError(f"method.tokenizer: {path} is not a readable safetensors file: {error}") from None
    state = load_pickle(path, "method.tokenizer")
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"method.tokenizer: {path} is no state dict; expected names and tensors only")
    return state, {}
