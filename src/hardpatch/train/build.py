"""From a run's configuration to the model that it describes."""

from collections.abc import Sequence

import torch

from hardpatch.config import IMAGENET_MEAN, IMAGENET_STD, RunConfig
from hardpatch.errors import UserError
from hardpatch.masking import masked_count
from hardpatch.methods.hpm import HPM
from hardpatch.methods.mae import MAE
from hardpatch.models.decoder import Decoder
from hardpatch.models.encoder import SIZES


def image_size(run: RunConfig) -> tuple[int, int]:
    """(height, width) of the crops in pixels."""
    size = run.data.image_size
    return (size, size) if isinstance(size, int) else size


def initial_model(run: RunConfig, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> HPM:
    """The student with which a run of that seed begins.

    Args:
        run: its configuration.
        mean, std: of each channel, for pixels in [0, 1].

    Raises:
        UserError: if sizes do not fit each other: one line from the part that found it.
    """
    shape = SIZES[run.model.size] | {
        name: value for name in ("width", "depth", "heads") if (value := getattr(run.model, name)) is not None
    }
    decoder = {name: getattr(run.model, f"decoder_{name}") for name in ("width", "depth", "heads")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        try:
            host = MAE(
                image_size=image_size(run),
                patch_size=run.model.patch_size,
                channels=run.data.channels,
                **shape,
                **{f"decoder_{name}": value for name, value in decoder.items()},
                normalise_pixels=run.method.normalise_pixels,
            )
            masked_count(host.encoder.grid[0] * host.encoder.grid[1], run.method.mask_ratio)
        except ValueError as error:
            raise UserError(str(error)) from None
        if run.method.predicting_loss == "none":
            return HPM(host, None, mean=mean, std=std)
        predictor = Decoder(**decoder, outputs=host.reconstructor.head.out_features)
    return HPM(host, predictor, predicting_loss=run.method.predicting_loss, mean=mean, std=std)
