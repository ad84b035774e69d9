"""Models small enough to run hundreds of times."""

import torch

from hardpatch.methods.hpm import HPM, PredictingLoss
from hardpatch.methods.mae import MAE
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


def small_hpm(predicting_loss: PredictingLoss = "relative", seed: int = 0) -> HPM:
    """The same with a loss predictor."""
    host = small_mae(seed=seed)
    return HPM(host, Decoder(width=16, depth=1, heads=2, outputs=48), predicting_loss=predicting_loss)


def mae_of(model: HPM) -> MAE:
    """The host, for those who want to look inside."""
    assert isinstance(model.host, MAE)
    return model.host
