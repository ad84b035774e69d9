"""Features and preprocessing of models in a folder for Hugging Face, as a user of that library computes them."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hardpatch.export.file_check import Outputs, Preprocess
from hardpatch.export.source import Source
from hardpatch.methods.mae import MAE
from hardpatch.methods.masking import masked_count, random_mask
from hardpatch.patches import gather, to_indices


def outputs_of(name: str, source: Source) -> Callable[[Path], Outputs]:
    """Return the loader of an exported folder, which returns the function from normalized images to tokens or scores.

    Args:
        name: class of the library.
        source: what was exported.
    """
    patches = source.encoder.grid[0] * source.encoder.grid[1]

    def load(folder: Path) -> Outputs:
        options = {"add_pooling_layer": False} if name in ("ViTModel", "BeitModel") else {}
        with _quiet_transformers() as transformers:
            model = getattr(transformers, name).from_pretrained(folder, **options).eval()
        if source.head is not None:
            return lambda images: model(images).logits

        def tokens(images: Tensor) -> Tensor:
            found = model(images).last_hidden_state
            if name == "CLIPVisionModel":  # which normalizes the class token only, after pooling
                found = getattr(model, "vision_model", model).post_layernorm(found)
            return torch.cat([found[:, :1], found[:, -patches:]], dim=1)

        return tokens

    return load


def preprocessing(folder: Path) -> tuple[Preprocess, str]:
    """Return the preprocessing of an exported folder, and name and version of the library."""
    with _quiet_transformers() as transformers:
        processor = transformers.AutoImageProcessor.from_pretrained(folder)
    return (
        lambda picture: processor(picture, return_tensors="pt")["pixel_values"],
        f"transformers {transformers.__version__}",
    )


def of_vit_mae(host: MAE, mask_ratio: float) -> tuple[Outputs, Callable[[Path], Outputs]]:
    """Return the function from normalized images to latent and predictions, and the loader of that of an export."""
    patches = host.encoder.grid[0] * host.encoder.grid[1]
    noise = torch.rand(1, patches, generator=torch.Generator().manual_seed(0))
    mask = random_mask(noise, masked_count(patches, mask_ratio))
    return partial(_mae_outputs, host, mask), partial(_vit_mae_outputs, mask)


def _mae_outputs(host: MAE, mask: Tensor, images: Tensor) -> Tensor:
    """Concatenate latent and predictions of the masked patches: ``[B, ...]``."""
    patches = to_indices(mask.expand(len(images), -1))
    latent = host.encode(images, patches)
    prediction = host.reconstruct(latent, host.decoder_tokens(latent, patches), patches)
    return torch.cat([latent.flatten(1), prediction.flatten(1)], dim=1)


def _vit_mae_outputs(mask: Tensor, folder: Path) -> Outputs:
    """Load a ``ViTMAEForPreTraining``. Returns the function from images to the outputs of :func:`_mae_outputs`."""
    with _quiet_transformers() as transformers:
        model = transformers.ViTMAEForPreTraining.from_pretrained(folder).eval()

    def outputs(images: Tensor) -> Tensor:
        masks = mask.expand(len(images), -1)
        # the library keeps the patches with the least noise, in the order of the noise
        noise = masks.float() * masks.shape[1] + torch.arange(masks.shape[1])
        latent = model.vit(images, noise=noise).last_hidden_state
        prediction = gather(model(images, noise=noise).logits, to_indices(masks).masked)
        return torch.cat([latent.flatten(1), prediction.flatten(1)], dim=1)

    return outputs


@contextmanager
def _quiet_transformers() -> Iterator[Any]:
    """Import the library. Hides progress bars, and that there is one kind only of the class that prepares images."""
    import transformers

    logging = transformers.utils.logging
    shown, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield transformers
    finally:
        logging.set_verbosity(verbosity)
        if shown:
            logging.enable_progress_bar()
