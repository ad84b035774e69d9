"""From a run's configuration to the model that it describes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from hardpatch.data.statistics import IMAGENET_MEAN, IMAGENET_STD
from hardpatch.errors import UserError
from hardpatch.methods import targets
from hardpatch.methods.base import Host
from hardpatch.methods.beit import BEiT
from hardpatch.methods.hpm import HPM, Masking
from hardpatch.methods.ibot import IBOT
from hardpatch.methods.mae import MAE
from hardpatch.methods.masking import masked_count
from hardpatch.methods.simmim import SimMIM
from hardpatch.models.decoder import Decoder
from hardpatch.models.encoder import SIZES, patch_grid
from hardpatch.pretrain.sections import RunConfig


def image_size(run: RunConfig) -> tuple[int, int]:
    """(height, width) of the crops in pixels."""
    size = run.data.image_size
    return (size, size) if isinstance(size, int) else size


def grid_of(run: RunConfig) -> tuple[int, int]:
    """(rows, columns) of patches.

    Raises:
        UserError: if the patch size does not divide the image.
    """
    try:
        return patch_grid(image_size(run), run.model.patch_size)
    except ValueError as error:
        raise UserError(str(error)) from None


def initial_model(
    run: RunConfig,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    outputs: int | None = None,
) -> HPM:
    """The student with which a run of that seed begins.

    Args:
        run: its configuration.
        mean, std: of each channel, for pixels in [0, 1].
        outputs: numbers to predict for a patch where the target is another network's, see :func:`target_of`; None is
            what the configuration alone says.

    Raises:
        UserError: if sizes do not fit each other: one line from the part that found it.
    """
    model, method, ibot, fast = run.model, run.method, run.ibot, run.fast
    shape = SIZES[model.size] | {
        name: value for name in ("width", "depth", "heads") if (value := getattr(model, name)) is not None
    }
    encoder: dict[str, Any] = {
        "image_size": image_size(run),
        "patch_size": model.patch_size,
        "channels": run.data.channels,
        "layer_scale": model.layer_scale,
        "drop_path": model.drop_path,
        **shape,
    }
    decoder: dict[str, int] = {name: getattr(model, f"decoder_{name}") for name in ("width", "depth", "heads")}
    decoder["depth"] = fast.predictor_depth or model.decoder_depth - fast.trunk(model.decoder_depth)
    cross = fast.decoder == "cross"
    predicts = method.predicting_loss != "none"
    tokens: dict[str, Any] = {"positions": model.positions, "decoder_width": model.decoder_width if predicts else None}
    if method.target == "teacher":
        outputs = shape["width"]
    rebuilt: dict[str, Any] = {"outputs": outputs, "normalize_pixels": method.target == "normalized_pixels"}
    hosts: dict[str, Callable[[], Host]] = {
        "mae": lambda: MAE(
            **encoder,
            decoder_width=model.decoder_width,
            decoder_depth=model.decoder_depth,
            decoder_heads=model.decoder_heads,
            shared_blocks=fast.trunk(model.decoder_depth),
            cross=cross,
            **rebuilt,
            loss=_loss(run),
            mask_token=method.secondary_ratio > 0.0,
        ),
        "simmim": lambda: SimMIM(**encoder, **tokens, **rebuilt, loss=_loss(run)),
        "beit": lambda: BEiT(**encoder, **tokens, vocabulary=outputs or 8192),
        "ibot": lambda: IBOT(
            **encoder,
            **tokens,
            outputs=ibot.outputs,
            head_hidden=ibot.head_hidden,
            head_bottleneck=ibot.head_bottleneck,
            student_temperature=ibot.student_temperature,
        ),
    }
    check_masks(run)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        try:
            host = hosts[method.host]()
            outputs_of_predictor = model.patch_size**2 * run.data.channels
            predictor = Decoder(**decoder, outputs=outputs_of_predictor, cross=cross) if predicts else None
        except ValueError as error:
            raise UserError(str(error)) from None
    if method.predicting_loss == "none":
        return HPM(host, None, mean=mean, std=std)
    return HPM(
        host,
        predictor,
        predicting_loss=method.predicting_loss,
        predictor_reads=_predictor_reads(run, shape["depth"]),
        mean=mean,
        std=std,
    )


def _predictor_reads(run: RunConfig, depth: int) -> int | None:
    """Blocks of the encoder that the loss predictor waits for; None is all."""
    blocks = run.fast.teacher_blocks
    if blocks is not None and blocks > depth:
        raise UserError(f"fast.teacher_blocks: expected at most the encoder's {depth} blocks, got {blocks}")
    return None if blocks == depth else blocks


def masking_of(run: RunConfig) -> Masking:
    """How the run's masks are drawn."""
    method = run.method
    unit = 1 if method.mask_unit is None else method.mask_unit // run.model.patch_size
    return Masking(method.mask, method.mining, unit, method.secondary_ratio, run.fast.prediction_ratio)


def check_masks(run: RunConfig) -> None:
    """Refuse masks that the grid of patches cannot have.

    Raises:
        UserError: names the setting.
    """
    grid, unit, method = grid_of(run), masking_of(run).unit, run.method
    if grid[0] % unit or grid[1] % unit:
        raise UserError(
            f"method.mask_unit: expected a divisor of the image size, got {method.mask_unit} px for "
            f"{grid[0] * run.model.patch_size}x{grid[1] * run.model.patch_size}"
        )
    units = grid[0] // unit, grid[1] // unit
    if method.mask == "grid" and (units[0] % 2 or units[1] % 2):
        raise UserError(f"method.mask: grid needs even rows and columns of patches, got {units[0]}x{units[1]}")
    try:
        for ratio in (method.mask_ratio - method.mask_ratio_spread, method.mask_ratio + method.mask_ratio_spread):
            masked_count(units[0] * units[1], ratio)
    except ValueError as error:
        raise UserError(str(error)) from None


def needs_teacher(run: RunConfig) -> bool:
    """Whether a moving average of the student has something to do."""
    method = run.method
    predicts = method.predicting_loss != "none"
    return (
        (predicts and not run.fast.remember)
        or method.host == "ibot"
        or method.target == "teacher"
        or masking_of(run).guided
    )


def target_of(run: RunConfig, device: torch.device) -> tuple[targets.Target | None, int | None]:
    """What is reconstructed where it is not the host's own pixels, and how many numbers a patch that takes.

    Raises:
        UserError: if the network that it comes from cannot be loaded.
    """
    method, grid = run.method, grid_of(run)
    if method.target == "teacher":
        return targets.teacher_features, None
    if method.frozen is not None:
        from hardpatch.models.frozen import frozen_teacher

        network = frozen_teacher(
            method.frozen, weights=method.frozen_weights, grid=grid, channels=run.data.channels
        ).to(device)
        return targets.FrozenFeatures(network), network.width
    if method.host == "beit":
        if method.tokenizer is None:
            raise UserError(
                "method.tokenizer: host beit predicts visual tokens, expected the file of a tokenizer, got none; make "
                "one of your images with hardpatch tokenizer"
            )
        from hardpatch.models.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(method.tokenizer).to(device)
        return targets.VisualTokens(tokenizer, grid), tokenizer.vocabulary
    return None, None


def _loss(run: RunConfig) -> str:
    """The reconstruction loss of hosts mae and simmim."""
    method = run.method
    if method.reconstruction_loss != "auto":
        return method.reconstruction_loss
    if method.target in ("teacher", "frozen"):
        return "l2norm"
    return "l1" if method.host == "simmim" else "mse"
