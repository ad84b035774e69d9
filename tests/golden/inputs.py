"""Weights and inputs that the golden numbers were computed from, drawn again instead of stored.

The reference models were initialized by torch's CPU generator at a known seed, then noise was added to every parameter
so that biases and norms count. Torch's generator is a Mersenne Twister, and NumPy has promised never to change the
numbers of its own: ``Stream`` draws from that one. See README.md in this folder.
"""

import math
import re
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

IMAGES = (4, 3, 64, 64)
PATCH, WIDTH, DEPTH = 8, 96, 3
DECODER_WIDTH, DECODER_DEPTH = 64, 2
SEEDS = {"hpm_tiny": 0, "hpm_tiny_norm_pix": 10, "mae_tiny": 5}
IBOT_SEED = 3


class Stream:
    """Numbers of ``torch.Generator().manual_seed(seed)`` on a CPU, within 2e-6."""

    def __init__(self, seed: int) -> None:
        self.bits = np.random.RandomState(seed)

    def _fractions(self, count: int) -> np.ndarray:
        return (self.bits.randint(0, 2**32, count, dtype=np.uint32) & 0xFFFFFF) / 2**24

    def uniform(self, shape: tuple[int, ...], bound: float) -> Tensor:
        """Draw from ``[-bound, bound)``."""
        values = self._fractions(math.prod(shape)) * (2 * bound) - bound
        return torch.from_numpy(values.astype(np.float32)).reshape(shape)

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Draw from a standard normal distribution by Box and Muller's method, in torch's blocks of 16."""
        assert math.prod(shape) % 16 == 0
        radius, angle = self._fractions(math.prod(shape)).reshape(-1, 2, 8).swapaxes(0, 1)
        radius, angle = np.sqrt(-2 * np.log(1 - radius)), 2 * np.pi * angle
        values = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        return torch.from_numpy(values.astype(np.float32)).reshape(shape)


def model_inputs(name: str) -> dict[str, Tensor]:
    """Weights (``model.<key>``, without the fixed positions) and ``images`` of a reference model."""
    seed, with_predictor = SEEDS[name], name != "mae_tiny"
    noise = Stream(seed + 1)
    weights = {
        f"model.{key}": weight + 0.02 * noise.normal(tuple(weight.shape))
        for key, weight in _initial_weights(Stream(seed), with_predictor).items()
    }
    if not with_predictor:
        return weights | {"images": noise.normal(IMAGES)}
    stream = Stream(seed + 2)
    smooth = F.interpolate(stream.normal((*IMAGES[:2], 16, 16)), IMAGES[2:], mode="bilinear")
    return weights | {"images": smooth + 0.1 * stream.normal(IMAGES)}


def ibot_inputs() -> dict[str, Tensor]:
    """Logits of three steps: 2 global and 4 local views of 3 images, 16 patches each; 32 and 48 prototypes."""
    stream = Stream(IBOT_SEED)
    logits = {}
    for step in range(3):
        for part, shape in (("cls", (6, 32)), ("patch", (6, 16, 48))):
            logits[f"step{step}.student_{part}"] = stream.normal(shape)
        for part, shape in (("cls", (6, 32)), ("patch", (6, 16, 48))):
            logits[f"step{step}.teacher_{part}"] = stream.normal(shape)
        logits[f"step{step}.student_local_cls"] = stream.normal((12, 32))
        stream.uniform((6, 16), 1.0)  # the step's masks, which are stored
    return logits


def _initial_weights(stream: Stream, with_predictor: bool) -> dict[str, Tensor]:
    """Weights as the reference's constructor leaves them, in the order of its parameters.

    Torch's default initialization of every layer comes first and counts only by the numbers that it uses up, except
    for the bias of the patch embedding, which stays.
    """
    shapes = dict(_shapes(with_predictor))
    linear = {key: shape for key, shape in shapes.items() if not re.search("norm|token|patch_embed", key)}
    patch, fan_in = (WIDTH, 3, PATCH, PATCH), 3 * PATCH * PATCH
    weights = {key: torch.full(shape, float(key.endswith("weight"))) for key, shape in shapes.items()}

    stream.uniform(patch, 1.0)
    weights["patch_embed.proj.bias"] = stream.uniform((WIDTH,), 1 / math.sqrt(fan_in))
    stream.uniform((sum(math.prod(shape) for shape in linear.values()),), 1.0)

    weights["patch_embed.proj.weight"] = stream.uniform(patch, math.sqrt(6 / (fan_in + WIDTH)))
    for token in ("cls_token", "mask_token"):
        weights[token] = 0.02 * stream.normal(shapes[token])
    for key, shape in linear.items():
        if key.endswith("weight"):
            weights[key] = stream.uniform(shape, math.sqrt(6 / sum(shape)))
    return weights


def _shapes(with_predictor: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    def layer(name: str, *shape: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield f"{name}.weight", shape
        yield f"{name}.bias", shape[:1]

    def blocks(name: str, depth: int, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
        for index in range(depth):
            yield from layer(f"{name}.{index}.norm1", width)
            yield from layer(f"{name}.{index}.attn.qkv", 3 * width, width)
            yield from layer(f"{name}.{index}.attn.proj", width, width)
            yield from layer(f"{name}.{index}.norm2", width)
            yield from layer(f"{name}.{index}.mlp.fc1", 4 * width, width)
            yield from layer(f"{name}.{index}.mlp.fc2", width, 4 * width)

    yield "cls_token", (1, 1, WIDTH)
    yield "mask_token", (1, 1, DECODER_WIDTH)
    yield from layer("patch_embed.proj", WIDTH, 3, PATCH, PATCH)
    yield from blocks("blocks", DEPTH, WIDTH)
    yield from layer("norm", WIDTH)
    yield from layer("decoder_embed", DECODER_WIDTH, WIDTH)
    for suffix in ("", "_losspred") if with_predictor else ("",):
        yield from blocks(f"decoder_blocks{suffix}", DECODER_DEPTH, DECODER_WIDTH)
        yield from layer(f"decoder_norm{suffix}", DECODER_WIDTH)
        yield from layer(f"decoder_pred{suffix}", 3 * PATCH * PATCH, DECODER_WIDTH)
