"""Encoders with random weights, for supervised training from scratch (Table 6 and supplement, Section D)."""

from hardpatch.configuration.build import initial_model
from hardpatch.configuration.sections import RunConfig
from hardpatch.data.sources import Source
from hardpatch.interchange.backbone import Backbone
from hardpatch.pretrain.images import resolve


def random_encoder(run: RunConfig, train: Source) -> Backbone:
    """Build the encoder that a pre-training run starts from, with its normalization of the images.

    Args:
        run: settings of the run; only the encoder's, the data's and the seed matter.
        train: images from which channel statistics are computed if the settings say so.
    """
    images = resolve(run, train)
    model = initial_model(run, images.mean, images.std, reading=images.reading)
    return Backbone(model.host.encoder, tuple(model.mean.tolist()), tuple(model.std.tolist()), model.reading)


def describe(run: RunConfig) -> str:
    """Return the name of such an encoder, which stands in a run's files where others name their weights."""
    height, width = run.image_size
    shape = run.encoder_shape
    return (
        f"random weights: {shape['depth']} blocks of width {shape['width']}, {shape['heads']} heads, "
        f"patches of {run.model.patch_size}, {height} x {width} px, host {run.method.host}"
    )
