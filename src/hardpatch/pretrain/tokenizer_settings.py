"""Settings of the training of a tokenizer.

This module does not import torch, so that ``--help`` is fast.
"""

from dataclasses import dataclass

from hardpatch.train.settings import LoopSettings, check_loop, expect, setting


@dataclass(frozen=True)
class TokenizerSettings(LoopSettings):
    """Settings of the training of a discrete VAE, chosen by this project for small images."""

    steps: int | None = setting(2000, "optimizer steps; this or epochs")
    batch_size: int = setting(128, "images per optimizer step")
    clip: float | None = setting(1.0, "gradient norm above which gradients are clipped; null does not clip")
    lr: float = setting(3e-3, "peak learning rate of AdamW")
    image_size: int = setting(64, "side of the crops in pixels")
    patch_size: int = setting(8, "side in pixels of the square that becomes one token")
    vocabulary: int = setting(512, "number of different tokens, at most 8192")
    width: int = setting(64, "channels of the network at the resolution of the tokens")


PRESETS = {"small": TokenizerSettings()}


def check(run: TokenizerSettings) -> None:
    """Refuse settings that cannot work; sizes are checked where the network is built.

    Raises:
        UserError: names the first.
    """
    check_loop(run)
    expect(run, "lr", "a number above 0", run.lr > 0)
    expect(run, "image_size", "1 pixel or more", run.image_size >= 1)
