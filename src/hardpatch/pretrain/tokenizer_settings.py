"""Settings of the training of a tokenizer.

This module does not import torch, so that ``--help`` is fast.
"""

from dataclasses import dataclass

from hardpatch.ranges import BATCH, CHANNELS, POSITIVE, RATE, SIDE, STEPS, Range
from hardpatch.train.settings import LoopSettings, check_loop, setting


@dataclass(frozen=True)
class TokenizerSettings(LoopSettings):
    """Settings of the training of a discrete VAE, chosen by this project for small images."""

    steps: int | None = setting(2000, "optimizer steps; this or epochs", STEPS)
    batch_size: int = setting(128, "images per optimizer step", BATCH)
    clip: float | None = setting(1.0, "gradient norm above which gradients are clipped; null does not clip", POSITIVE)
    lr: float = setting(3e-3, "peak learning rate of AdamW", RATE)
    image_size: int = setting(64, "side of the crops in pixels", SIDE)
    patch_size: int = setting(8, "side in pixels of the square that becomes one token", SIDE)
    vocabulary: int = setting(512, "number of different tokens, at most 8192", Range(2, 8_192, whole=True))
    width: int = setting(64, "channels of the network at the resolution of the tokens", CHANNELS)


PRESETS = {"small": TokenizerSettings()}


def check(run: TokenizerSettings) -> None:
    """Refuse settings that cannot work; sizes are checked where the network is built.

    Raises:
        UserError: names the first.
    """
    check_loop(run)
