"""Models small enough to run hundreds of times."""

import torch

from hardpatch.choices import PredictingLossName
from hardpatch.methods.beit import BEiT
from hardpatch.methods.hpm import HPM
from hardpatch.methods.ibot import IBOT
from hardpatch.methods.mae import MAE
from hardpatch.methods.simmim import SimMIM
from hardpatch.models.decoder import Decoder


def small_mae(image_size: tuple[int, int] = (16, 24), channels: int = 3, seed: int = 0) -> MAE:
    """2 blocks of 32, patches of 4 px: 24 of them."""
    torch.manual_seed(seed)
    return MAE(
        image_size=image_size,
        patch_size=4,
        channels=channels,
        width=32,
        depth=2,
        heads=2,
        decoder_width=16,
        decoder_depth=1,
        decoder_heads=2,
    )


def small_predictor() -> Decoder:
    """One block of 16."""
    return Decoder(width=16, depth=1, heads=2, outputs=48)


def small_hpm(predicting_loss: PredictingLossName = "relative", seed: int = 0) -> HPM:
    """:func:`small_mae` with a loss predictor."""
    host = small_mae(seed=seed)
    return HPM(host, small_predictor(), predicting_loss=predicting_loss)


def small_simmim(decoder_width: int | None = 16) -> SimMIM:
    """SimMIM with the same encoder, with mask tokens and BEiT's kind of blocks."""
    torch.manual_seed(0)
    return SimMIM(
        image_size=(16, 24),
        patch_size=4,
        width=32,
        depth=2,
        heads=2,
        decoder_width=decoder_width,
        positions="relative",
        layer_scale=0.1,
    )


def small_beit(vocabulary: int = 11) -> BEiT:
    """Names visual tokens."""
    torch.manual_seed(0)
    return BEiT(image_size=(16, 24), patch_size=4, width=32, depth=2, heads=2, decoder_width=16, vocabulary=vocabulary)


def small_ibot(outputs: int = 11) -> IBOT:
    """With few prototypes."""
    torch.manual_seed(0)
    return IBOT(
        image_size=(16, 24),
        patch_size=4,
        width=32,
        depth=2,
        heads=2,
        decoder_width=16,
        outputs=outputs,
        head_hidden=24,
        head_bottleneck=8,
    )


def mae_of(model: HPM) -> MAE:
    """Return the host of ``model``, typed as an MAE."""
    assert isinstance(model.host, MAE)
    return model.host
