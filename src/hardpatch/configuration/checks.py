"""Checks of a run's configuration."""

from collections.abc import Sequence
from dataclasses import asdict

from hardpatch.configuration.hosts import HOSTS
from hardpatch.configuration.sections import OptimConfig, RunConfig
from hardpatch.data.limits import check_channels
from hardpatch.errors import UserError, shown
from hardpatch.ranges import check_ranges
from hardpatch.train.loggers import logger_names


def check(run: RunConfig) -> None:
    """Refuse settings that cannot work; sizes of model and mask are checked where those are built.

    Raises:
        UserError: names the first.
    """
    _check_numbers(run)
    logger_names(run.train.logger)
    _check_data(run)
    _check_training(run)
    _check_schedule(run.optim)
    _check_model(run)
    _check_method(run)
    _check_fast(run)
    _check_init(run)
    if (run.knn.train is None) != (run.knn.val is None):
        raise UserError(
            "knn.train, knn.val: expected both or neither; train gives the neighbors, val the images to classify"
        )


def _check_numbers(run: RunConfig) -> None:
    """Check the range of each number, and numbers that depend on each other."""
    check_ranges(run)
    data, method, optim = run.data, run.method, run.optim
    if not method.mask_ratio_spread < min(method.mask_ratio, 1.0 - method.mask_ratio):
        raise UserError(
            f"method.mask_ratio_spread: expected a number that keeps the ratio {method.mask_ratio} between 0 and 1, "
            f"got {method.mask_ratio_spread}"
        )
    if optim.schedule == "cosine" and optim.min_lr > run.peak_lr:
        raise UserError(f"optim.min_lr: expected at most the peak learning rate {run.peak_lr:g}, got {optim.min_lr}")
    if not isinstance(data.image_size, int) and len(data.image_size) != 2:
        raise UserError(f"data.image_size: expected a side or [height, width], got {list(data.image_size)}")
    if data.bands == []:
        raise UserError("data.bands: expected a pattern for each band, got an empty list; null reads other images")
    if data.path == []:
        raise UserError("data.path: expected images, got an empty list")


def _check_data(run: RunConfig) -> None:
    """Check crops, channels and where images are kept."""
    data, method = run.data, run.method
    if run.batch_size % data.crops:
        raise UserError(f"data.crops: expected a divisor of batch_size={run.batch_size}, got {data.crops}")
    host = HOSTS[method.host]
    if data.crops > 1 and host.multi_crop:
        raise UserError(f"data.crops: host {method.host} has its own crops of each image, expected 1, got {data.crops}")
    if data.in_memory == "device" and data.color_jitter:
        raise UserError(
            f"data.color_jitter: in_memory device only crops and flips, expected 0, got {data.color_jitter}"
        )
    if data.in_memory == "device" and host.multi_crop:
        raise UserError(
            f"data.in_memory: device gives one crop of an image and host {method.host} needs many; use host or no"
        )
    if data.channels != "auto":
        check_channels(data.channels if isinstance(data.channels, int) else tuple(data.channels))
    if data.channels == "auto":
        return  # whether statistics fit shows when the images are seen
    for name, statistics in (("data.mean", data.mean), ("data.std", data.std)):
        if (
            isinstance(statistics, Sequence)
            and not isinstance(statistics, str)
            and len(statistics) != data.channel_count
        ):
            raise UserError(f"{name}: expected {data.channel_count} numbers, one a channel, got {len(statistics)}")
        if statistics == "imagenet" and data.channel_count != 3:
            raise UserError(f"{name}: ImageNet's statistics are for 3 channels, not {data.channel_count}; use computed")


def _check_training(run: RunConfig) -> None:
    """Check length, micro-batches and compilation."""
    method, optim, train = run.method, run.optim, run.train
    if optim.accumulation_steps != "auto" and run.batch_size % optim.accumulation_steps:
        raise UserError(
            f"optim.accumulation_steps: expected a divisor of batch_size={run.batch_size}, "
            f"got {optim.accumulation_steps}"
        )
    if optim.accumulation_steps == "auto" and train.compile == "cuda_graphs":
        raise UserError(
            "optim.accumulation_steps: auto cannot try out what train.compile cuda_graphs takes; give a number"
        )
    if train.compile != "no" and method.mask_ratio_spread:
        raise UserError(
            f"train.compile: needs as many masked patches in every step, and with method.mask_ratio_spread "
            f"{method.mask_ratio_spread} they change; set that to 0 or leave train.compile no"
        )
    if (run.epochs is None) == (run.steps is None):
        count = "neither" if run.epochs is None else "both"
        raise UserError(f"epochs, steps: expected one of the two, got {count}")


def _check_schedule(optim: OptimConfig) -> None:
    """Check the learning rate after the warm-up, and that its schedule uses what is set."""
    if optim.schedule == "cosine":
        for name in ("step_at", "step_factor"):
            if getattr(optim, name) != getattr(OptimConfig(), name):
                raise UserError(f"optim.{name}: only for optim.schedule step, leave it out with cosine")
        return
    if optim.min_lr:
        raise UserError(f"optim.min_lr: only for optim.schedule cosine, leave it out with step, got {optim.min_lr}")
    if not optim.warmup <= optim.step_at <= 1.0:
        raise UserError(
            f"optim.step_at: expected a fraction from the end of the warm-up, {optim.warmup}, to 1, got {optim.step_at}"
        )


def _check_model(run: RunConfig) -> None:
    """Check that the attention heads divide the widths."""
    model, shape = run.model, run.encoder_shape
    pairs = [("heads", shape["heads"], "width", shape["width"])]
    if HOSTS[run.method.host].drops_masked or run.has_predictor:
        pairs.append(("decoder_heads", model.decoder_heads, "decoder_width", model.decoder_width))
    for heads, number, name, width in pairs:
        if width % number:
            raise UserError(
                f"model.{heads}: expected a divisor of the width {width}, got {number}; change it or model.{name}"
            )
        if width % 4 and (name == "decoder_width" or model.positions == "sincos"):
            raise UserError(f"model.{name}: expected a multiple of 4, got {width}")


def _check_method(run: RunConfig) -> None:
    """Check that the parts of a method go together."""
    method, model = run.method, run.model
    if (method.target == "frozen") != (method.frozen is not None):
        raise UserError(
            "method.frozen: expected a network with method.target frozen and none without, got "
            f"{shown(repr(method.frozen))} with target {method.target}"
        )
    if method.frozen_weights is not None and method.frozen is None:
        raise UserError("method.frozen_weights: expected with method.frozen, which says what network they are of")
    host = HOSTS[method.host]
    if host.own_target and (method.target, method.reconstruction_loss) != ("auto", "auto"):
        raise UserError(
            f"method.target, method.reconstruction_loss: host {method.host} has its own, expected auto, got "
            f"{method.target} and {method.reconstruction_loss}"
        )
    if not host.tokenizer and method.tokenizer is not None:
        raise UserError(f"method.tokenizer: host {method.host} has no visual tokens; leave it out")
    if host.tokenizer and run.data.channel_count != 3:
        raise UserError(
            f"data.channels: the tokenizer of host {method.host} reads 3 channels, got {run.data.channel_count}"
        )
    if host.drops_masked and model.positions != "sincos" and run.init.encoder is None:
        raise UserError(f"model.positions: host {method.host} drops patches and needs sincos, got {model.positions}")
    if not host.drops_masked and method.secondary_ratio:
        raise UserError(
            f"method.secondary_ratio: host {method.host} has no dropped patches to add to, expected 0, got "
            f"{method.secondary_ratio}"
        )
    if method.mask == "grid" and (method.mask_ratio, method.mask_ratio_spread) != (0.75, 0.0):
        raise UserError(
            "method.mask_ratio: mask grid leaves one of each four patches, expected 0.75 with mask_ratio_spread 0, "
            f"got {method.mask_ratio} and {method.mask_ratio_spread}"
        )
    if method.mask_unit is not None and method.mask_unit % model.patch_size:
        raise UserError(
            f"method.mask_unit: expected a multiple of the patch size {model.patch_size} in pixels, got "
            f"{method.mask_unit}"
        )
    if host.multi_crop and run.ibot.local_size % model.patch_size:
        raise UserError(
            f"ibot.local_size: expected a multiple of the patch size {model.patch_size}, got {run.ibot.local_size}"
        )


def _check_init(run: RunConfig) -> None:
    """Check that settings of existing weights come with such weights."""
    init = run.init
    if init.weights is None:
        changed = [name for name, value in asdict(init).items() if value != getattr(type(init)(), name)]
        if changed:
            raise UserError(f"init.{changed[0]}: expected with --init WEIGHTS, which names weights to start from")
    elif init.frozen_blocks > run.encoder_shape["depth"]:
        raise UserError(
            f"init.frozen_blocks: expected at most the {run.encoder_shape['depth']} blocks of the encoder, got "
            f"{init.frozen_blocks}"
        )


def _check_fast(run: RunConfig) -> None:
    """Check the settings of cheaper mining."""
    fast, method, model = run.fast, run.method, run.model
    changed = [name for name, value in asdict(fast).items() if value != getattr(type(fast)(), name)]
    if changed and not HOSTS[method.host].drops_masked:
        raise UserError(f"fast.{changed[0]}: only for a host that drops patches, got {method.host}; leave it out")
    for name in changed:
        if method.predicting_loss == "none" and name not in ("decoder", "prediction_ratio"):
            raise UserError(f"fast.{name}: there is no loss predictor with method.predicting_loss none; leave it out")
    if not 0 <= fast.trunk(model.decoder_depth) < model.decoder_depth:
        raise UserError(
            f"fast.shared_blocks: expected fewer than the reconstructor's {model.decoder_depth} blocks, 0 to "
            f"{model.decoder_depth - 1} or -1 to -{model.decoder_depth} from the last, got {fast.shared_blocks}"
        )
    if fast.shared_blocks and fast.decoder == "cross":
        raise UserError("fast.shared_blocks: not with fast.decoder cross; use fast.predictor_depth to save there")
    sees_all = method.target == "teacher" or method.mask.startswith("attention")
    if sees_all and (fast.teacher_resolution, fast.remember) != (1.0, False):
        name = next(name for name in ("teacher_resolution", "remember") if name in changed)
        raise UserError(f"fast.{name}: target teacher and masks by attention need all that the teacher sees")
    if fast.remember and run.data.crops > 1:
        raise UserError(
            f"fast.remember: two crops of an image in one batch would write to one map; set data.crops 1, got "
            f"{run.data.crops}"
        )
