"""Small tokenizers for the tests of hardpatch.models."""

import torch

from hardpatch.models.dalle import DalleTokenizer
from hardpatch.models.discrete_vae import DiscreteVAE

PIXELS = torch.randint(0, 256, (2, 3, 6, 4), generator=torch.Generator().manual_seed(0))
PIXELS = PIXELS.repeat_interleave(8, dim=2).repeat_interleave(8, dim=3).byte()
"""uint8 [2, 3, 48, 32]: 6 x 4 patches of 8 px, each of one color"""


def small_dalle() -> DalleTokenizer:
    """Make DALL-E's encoder 16 times narrower, with biases other than zero."""
    torch.manual_seed(0)
    model = DalleTokenizer(width=16, vocabulary=40)
    for name, value in model.named_parameters():
        if name.endswith(".b"):
            torch.nn.init.normal_(value, std=0.1)
    return model


def small_vae(patch_size: int = 8) -> DiscreteVAE:
    torch.manual_seed(0)
    return DiscreteVAE(patch_size, vocabulary=24, width=16)
