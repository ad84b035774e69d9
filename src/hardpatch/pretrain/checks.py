"""Checks of a run's configuration."""

from collections.abc import Sequence
from dataclasses import asdict

from hardpatch.data.limits import check_channels
from hardpatch.errors import UserError
from hardpatch.pretrain.hosts import HOSTS
from hardpatch.pretrain.sections import OptimConfig, RunConfig


def check(run: RunConfig) -> None:
    """Refuse settings that cannot work; sizes of model and mask are checked where those are built.

    Raises:
        UserError: names the first.
    """
    _check_ranges(run)
    _check_data(run)
    _check_training(run)
    _check_schedule(run.optim)
    _check_method(run)
    _check_fast(run)
    if (run.knn.train is None) != (run.knn.val is None):
        raise UserError(
            "knn.train, knn.val: expected both or neither; train gives the neighbors, val the images to classify"
        )


def _check_ranges(run: RunConfig) -> None:
    """Check the range of each number."""
    data, method, optim, train = run.data, run.method, run.optim, run.train
    fractions = {
        "method.alpha_start": method.alpha_start,
        "method.alpha_end": method.alpha_end,
        "method.momentum_start": method.momentum_start,
        "method.momentum_end": method.momentum_end,
        "method.momentum_warmup": method.momentum_warmup,
        "method.secondary_ratio": method.secondary_ratio,
        "model.drop_path": run.model.drop_path,
        "ibot.teacher_temperature_warmup": run.ibot.teacher_temperature_warmup,
        "ibot.frozen_last_layer": run.ibot.frozen_last_layer,
        "optim.warmup": optim.warmup,
        "data.flip": data.flip,
        "fast.prediction_ratio": run.fast.prediction_ratio,
        "data.max_bad_fraction": data.max_bad_fraction,
    }
    for name, fraction in fractions.items():
        if not 0.0 <= fraction <= 1.0:
            raise UserError(f"{name}: expected a number in [0, 1], got {fraction}")
    if not 0.0 < method.mask_ratio < 1.0:
        raise UserError(f"method.mask_ratio: expected a number between 0 and 1, got {method.mask_ratio}")
    if not 0.0 <= method.mask_ratio_spread < min(method.mask_ratio, 1.0 - method.mask_ratio):
        raise UserError(
            f"method.mask_ratio_spread: expected a number that keeps the ratio {method.mask_ratio} between 0 and 1, "
            f"got {method.mask_ratio_spread}"
        )
    at_least_one: dict[str, float | None] = {
        "verdict.images": run.verdict.images,
        "batch_size": run.batch_size,
        "steps": run.steps,
        "model.patch_size": run.model.patch_size,
        "model.decoder_depth": run.model.decoder_depth,
        "fast.predictor_depth": run.fast.predictor_depth,
        "optim.accumulation_steps": 1 if optim.accumulation_steps == "auto" else optim.accumulation_steps,
        "ibot.outputs": run.ibot.outputs,
        "ibot.head_hidden": run.ibot.head_hidden,
        "ibot.head_bottleneck": run.ibot.head_bottleneck,
        "ibot.local_size": run.ibot.local_size,
        "train.log_every": train.log_every,
        "train.checkpoint_steps": train.checkpoint_steps,
        "train.keep_checkpoints": train.keep_checkpoints,
        "train.devices": 1 if train.devices == "auto" else train.devices,
        "train.nodes": train.nodes,
    }
    for name, number in at_least_one.items():
        if number is not None and number < 1:
            raise UserError(f"{name}: expected at least 1, got {number}")
    positive = {
        "epochs": run.epochs,
        "fast.prediction_ratio": run.fast.prediction_ratio,
        "fast.teacher_resolution": run.fast.teacher_resolution,
        "optim.clip": optim.clip,
        "optim.lr": optim.lr,
        "optim.base_lr": optim.base_lr,
        "train.answer_minutes": train.answer_minutes,
    }
    for name, value in positive.items():
        if value is not None and value <= 0:
            raise UserError(f"{name}: expected a number above 0, got {value}")
    if not 0 <= run.seed < 2**63:
        raise UserError(f"seed: expected a whole number from 0 to 2^63 - 1, got {run.seed}")


def _check_data(run: RunConfig) -> None:
    """Check crops, channels and where images are kept."""
    data, method = run.data, run.method
    for name, (low, high) in (("data.crop_scale", data.crop_scale), ("ibot.local_scale", run.ibot.local_scale)):
        if not 0.0 < low <= high <= 1.0:
            raise UserError(f"{name}: expected 0 < smallest <= largest <= 1, got {[low, high]}")
    if not 0.0 < data.crop_ratio[0] <= data.crop_ratio[1]:
        raise UserError(f"data.crop_ratio: expected 0 < narrowest <= widest, got {list(data.crop_ratio)}")
    if data.shrink_on_decode is not None and data.shrink_on_decode < 1:
        raise UserError(f"data.shrink_on_decode: expected at least 1, or null for never, got {data.shrink_on_decode}")
    if data.device_side is not None and data.device_side < 1:
        raise UserError(f"data.device_side: expected at least 1 pixel, got {data.device_side}")
    if data.crops < 1 or run.batch_size % data.crops:
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
    if not all(0 <= value <= 255 for value in data.background):
        raise UserError(f"data.background: expected red, green and blue from 0 to 255, got {list(data.background)}")
    if data.max_pixels < 1:
        raise UserError(f"data.max_pixels: expected 1 or more, got {data.max_pixels}")
    counts = {"verdict.checks": run.verdict.checks, "data.hold_out": data.hold_out, "data.workers": data.workers}
    for name, count in counts.items():
        if isinstance(count, int) and count < 0:
            raise UserError(f"{name}: expected 0 or more, got {count}")
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
    if not 0.0 <= optim.step_factor <= 1.0:
        raise UserError(f"optim.step_factor: expected a number in [0, 1], got {optim.step_factor}")


def _check_method(run: RunConfig) -> None:
    """Check that the parts of a method go together."""
    method, model = run.method, run.model
    if (method.target == "frozen") != (method.frozen is not None):
        raise UserError(
            f"method.frozen: expected a network with method.target frozen and none without, got {method.frozen!r} with "
            f"target {method.target}"
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
    if host.drops_masked and model.positions != "sincos":
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
    if method.mask_unit is not None and (method.mask_unit < 1 or method.mask_unit % model.patch_size):
        raise UserError(
            f"method.mask_unit: expected a multiple of the patch size {model.patch_size} in pixels, got "
            f"{method.mask_unit}"
        )
    if host.multi_crop:
        if run.ibot.local_crops < 0:
            raise UserError(f"ibot.local_crops: expected 0 or more, got {run.ibot.local_crops}")
        if run.ibot.local_size % model.patch_size:
            raise UserError(
                f"ibot.local_size: expected a multiple of the patch size {model.patch_size}, got {run.ibot.local_size}"
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
    if fast.teacher_resolution > 1.0:
        raise UserError(f"fast.teacher_resolution: expected a factor up to 1, got {fast.teacher_resolution}")
    sees_all = method.target == "teacher" or method.mask.startswith("attention")
    if sees_all and (fast.teacher_resolution, fast.remember) != (1.0, False):
        name = next(name for name in ("teacher_resolution", "remember") if name in changed)
        raise UserError(f"fast.{name}: target teacher and masks by attention need all that the teacher sees")
    if fast.remember and run.data.crops > 1:
        raise UserError(
            f"fast.remember: two crops of an image in one batch would write to one map; set data.crops 1, got "
            f"{run.data.crops}"
        )
