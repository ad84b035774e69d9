"""Build the model, the target network and the crops of a run from its configuration."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from hardpatch.configuration.hosts import HOSTS
from hardpatch.configuration.sections import RunConfig
from hardpatch.configuration.size import check_model_fits
from hardpatch.data.augment import MultiCropTransform, TrainTransform
from hardpatch.data.reading import RGB, Reading
from hardpatch.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from hardpatch.errors import UserError
from hardpatch.methods import targets
from hardpatch.methods.base import Host
from hardpatch.methods.hpm import HPM
from hardpatch.methods.masking import masked_count
from hardpatch.models.adapt import adapted_settings
from hardpatch.models.decoder import Decoder
from hardpatch.models.encoder_settings import build_encoder
from hardpatch.models.transfer import train_positions


def initial_model(
    run: RunConfig,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    outputs: int | None = None,
    reading: Reading | None = None,
) -> HPM:
    """Build the student with its initial weights, which depend on the seed only.

    Args:
        run: its configuration.
        mean: of each channel, for pixels in [0, 1].
        std: standard deviation, likewise.
        outputs: values to predict per patch if the target comes from another network, see :func:`target_of`; None
            takes the number from the configuration.
        reading: channels, type and range of the pixels; None is 8 bits.

    Raises:
        UserError: if sizes do not fit each other.
    """
    run = with_channels(run, len(mean))
    model, method = run.model, run.method
    check_masks(run)
    if torch.get_default_device().type != "meta":
        check_model_fits(run)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        try:
            host = _with_encoder(run, HOSTS[method.host].build(run, outputs))
            if method.predicting_loss == "none":
                return HPM(host, None, mean=mean, std=std, reading=reading)
            predictor = Decoder(
                width=model.decoder_width,
                depth=run.fast.predictor_depth or model.decoder_depth - run.fast.trunk(model.decoder_depth),
                heads=model.decoder_heads,
                outputs=model.patch_size**2 * run.data.channel_count,
                cross=run.fast.decoder == "cross",
            )
        except ValueError as error:
            raise UserError(str(error)) from None
    return HPM(host, predictor, predicting_loss=method.predicting_loss, mean=mean, std=std, reading=reading)


def _with_encoder(run: RunConfig, host: Host) -> Host:
    """Give a host an encoder of the shape of the weights that the run starts from, if it starts from any.

    Raises:
        ValueError: if the host cannot use it.
    """
    if run.init.encoder is None:
        return host
    settings = adapted_settings(run.init.encoder, run.image_size, run.model.patch_size, run.data.channel_count)
    encoder = build_encoder(settings | {"drop_path": run.model.drop_path})
    relative = encoder.relative_bias is not None or "block_bias_grid" in settings
    if relative and host.encoder.drop_masked:
        raise ValueError(
            f"--init: its positions are relative, which host {run.method.host} cannot use, since it drops patches; "
            "expected --method.host simmim, beit or ibot"
        )
    if settings["positions"] == "learned":
        train_positions(encoder)
    encoder.drop_masked, encoder.mask_token = host.encoder.drop_masked, host.encoder.mask_token
    host.encoder = encoder
    return host


def initial_like(run: RunConfig, model: HPM, outputs: int | None) -> HPM:
    """Build the initial student of a run once more, on the device of its ``model``; ``outputs`` as above."""
    initial = initial_model(run, model.mean.tolist(), model.std.tolist(), outputs, model.reading)
    return initial.to(model.mean.device)


def target_of(run: RunConfig, device: torch.device) -> tuple[targets.Target | None, int | None]:
    """Load the network that computes the targets, if there is one, and return it with its number of values per patch.

    Raises:
        UserError: if the network cannot be loaded.
    """
    method = run.method
    if method.target == "teacher":
        return targets.TeacherFeatures(), None
    if method.frozen == "hardpatch":
        from hardpatch.configuration.supervised_target import supervised_teacher

        classifier = supervised_teacher(method.frozen_weights, run.grid, run.data.channel_count).to(device)
        return targets.FrozenFeatures(classifier), classifier.width
    if method.frozen is not None:
        from hardpatch.models.frozen import frozen_teacher

        network = frozen_teacher(
            method.frozen, weights=method.frozen_weights, grid=run.grid, channels=run.data.channel_count
        ).to(device)
        return targets.FrozenFeatures(network), network.width
    if HOSTS[method.host].tokenizer:
        if method.tokenizer is None:
            raise UserError(
                f"method.tokenizer: host {method.host} predicts visual tokens, expected the file of a tokenizer, got "
                "none; train one on your images with hardpatch tokenizer"
            )
        from hardpatch.models.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(method.tokenizer).to(device)
        return targets.VisualTokens(tokenizer, run.grid), tokenizer.vocabulary
    return None, None


def with_channels(run: RunConfig, channels: int) -> RunConfig:
    """Return the run with the number of channels that its images have."""
    return run if run.data.channels == channels else replace(run, data=replace(run.data, channels=channels))


def crops_of(run: RunConfig, reading: Reading = RGB) -> TrainTransform:
    """Return the transform that draws one random crop of an image."""
    data = run.data
    return TrainTransform(
        run.image_size,
        reading,
        data.crop_scale,
        data.crop_ratio,
        data.flip,
        color_jitter=data.color_jitter,
        shrink_on_decode=data.shrink_on_decode,
    )


def transform_of(run: RunConfig, reading: Reading = RGB) -> TrainTransform | MultiCropTransform:
    """Return the transform that draws all crops that the host needs from an image."""
    data, ibot = run.data, run.ibot
    if not HOSTS[run.method.host].multi_crop:
        return crops_of(run, reading)
    return MultiCropTransform(
        run.image_size,
        local_size=(ibot.local_size, ibot.local_size),
        local_crops=ibot.local_crops,
        reading=reading,
        global_scale=data.crop_scale,
        local_scale=ibot.local_scale,
        ratio=data.crop_ratio,
        flip=data.flip,
        color=ibot.color,
    )


def check_masks(run: RunConfig) -> None:
    """Check that the masks fit the grid of patches.

    Raises:
        UserError: names the setting.
    """
    grid, masking, method = run.grid, run.masking, run.method
    if grid[0] % masking.unit or grid[1] % masking.unit:
        raise UserError(
            f"method.mask_unit: expected a divisor of the image size, got {method.mask_unit} px for "
            f"{run.image_size[0]}x{run.image_size[1]}"
        )
    rows, columns = masking.units
    if method.mask == "grid" and (rows % 2 or columns % 2):
        raise UserError(f"method.mask: grid needs even rows and columns of patches, got {rows}x{columns}")
    try:
        for ratio in (method.mask_ratio - method.mask_ratio_spread, method.mask_ratio + method.mask_ratio_spread):
            masked_count(rows * columns, ratio)
    except ValueError as error:
        raise UserError(str(error)) from None
