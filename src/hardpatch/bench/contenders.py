"""Contenders of `hardpatch bench`: a training step of this package, of other libraries' MAE, of literal Algorithm 1.

All have the same sizes, mask ratio and uint8 pixels, which they normalize in the step. All use AdamW with gradient
clipping, fused except for the literal algorithm. Masks and weights are each contender's own.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from hardpatch.bench.literal import LiteralLearner
from hardpatch.bench.other_libraries import OTHER_LIBRARIES
from hardpatch.configuration import config
from hardpatch.configuration.build import initial_model, target_of
from hardpatch.configuration.sections import FastConfig, RunConfig
from hardpatch.data.batch import Batch
from hardpatch.data.statistics import ChannelStatistics, resolve_statistics
from hardpatch.errors import UserError, did_you_mean
from hardpatch.models.pixels import Normalized, normalize, register_normalization
from hardpatch.pretrain import recipes
from hardpatch.pretrain.micro_batch import synthetic_batch
from hardpatch.pretrain.schedule import Schedule, schedule
from hardpatch.pretrain.step import Learner
from hardpatch.train.optimizer import parameter_groups

STEPS = 1000
"""Steps of the training whose middle step is timed."""

NAMES = ("hpm", "mae", "hpm_fast", *OTHER_LIBRARIES, "literal")


class Contender(NamedTuple):
    """Training step to time."""

    name: str
    run: RunConfig
    """equivalent configuration of this package, by which its FLOPs are counted"""
    step: Callable[[], object]
    """takes one optimizer step"""


class UnavailableError(Exception):
    """Error for a contender that cannot run here; the message says why."""


def prepare_contender(name: str, run: RunConfig, fabric: Fabric, batch: Batch) -> Contender:
    """Build a contender.

    Args:
        name: ``hpm`` (the run itself), ``mae`` (its host without mining), ``literal``, ``transformers``, ``lightly``,
            or a recipe, whose section ``fast`` is applied to the run.
        run: sizes, batch size and precision.
        fabric: device and precision.
        batch: of every step.

    Raises:
        UnavailableError: if it is not installed or does not support the sizes.
        UserError: if there is no contender of that name.
    """
    host = replace(run, method=replace(run.method, predicting_loss="none"), fast=FastConfig())
    if name == "hpm":
        return _learner(name, run, fabric, batch)
    if name == "mae":
        return _learner(run.method.host, host, fabric, batch)
    if name == "literal":
        return _literal(run, fabric, batch)
    if name in OTHER_LIBRARIES:
        return _other_library(name, host, fabric, batch)
    if name in recipes.names():
        fast = recipes.read(name).get("fast", {})
        return _learner(name, config.build({**config.to_dict(run), "fast": fast}), fabric, batch)
    if name in NAMES:
        raise UnavailableError("there is no recipe of that name")
    choices = [*NAMES, *recipes.names()]
    raise UserError(f"--contenders: {name} is none of {', '.join(NAMES)} or a recipe{did_you_mean(name, choices)}")


def noise_batch(run: RunConfig, device: torch.device) -> Batch:
    """Build a batch of noise as the loader would for the run's host, the same for all, so that no loader is timed."""

    def pixels(*shape: int) -> Tensor:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    batch = synthetic_batch(run, run.batch_size, pixels)
    if device.type != "cuda":
        return batch
    return Batch._make(part.pin_memory() if isinstance(part, Tensor) else part for part in batch)


def middle_schedule(run: RunConfig) -> Schedule:
    """Schedule in the middle of training, but with as many patches mined as at the end."""
    alpha = run.method.alpha_end if run.has_predictor else 0.0
    return schedule(run, STEPS // 2, STEPS)._replace(alpha=alpha, mask_ratio=run.method.mask_ratio)


def _learner(name: str, run: RunConfig, fabric: Fabric, batch: Batch) -> Contender:
    target, outputs = target_of(run, fabric.device)
    model = initial_model(run, *_statistics(run), outputs)
    learner, values = Learner(run, model, fabric, STEPS, target, images=run.batch_size), middle_schedule(run)
    return Contender(name, run, lambda: learner.train_step(batch, values))


def _literal(run: RunConfig, fabric: Fabric, batch: Batch) -> Contender:
    run = replace(run, fast=FastConfig())
    try:
        model = initial_model(run, *_statistics(run))
        learner = LiteralLearner(run, model, fabric.device, autocast=run.train.precision == "bf16")
    except UserError as error:
        raise UnavailableError(str(error)) from None
    values = middle_schedule(run)
    return Contender("literal", run, lambda: learner.train_step(batch, values))


def _other_library(name: str, run: RunConfig, fabric: Fabric, batch: Batch) -> Contender:
    """Build another library's MAE, trained as its users would with torch's own means for speed."""
    (height, width), model = run.image_size, run.model
    if run.method.host != "mae" or run.method.frozen or model.layer_scale is not None or height != width:
        raise UnavailableError("supports MAE on square images only")
    try:
        network = OTHER_LIBRARIES[name](run, height).to(fabric.device)
    except ModuleNotFoundError as error:
        raise UnavailableError(f"not installed ({error.name}): pip install 'hardpatch[bench]'") from None
    if run.train.compile != "no":
        network.compile(dynamic=False, mode="reduce-overhead" if run.train.compile == "cuda_graphs" else None)
    groups = parameter_groups(network, run.optim.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=middle_schedule(run).lr, betas=run.optim.betas, fused=True)
    parameters = [parameter for group in groups for parameter in group["params"]]
    statistics = nn.Module()
    register_normalization(statistics, *_statistics(run))
    statistics.to(fabric.device)

    def step() -> None:
        pixels = batch.images.to(fabric.device, non_blocking=True)
        with fabric.autocast():
            loss = network(normalize(pixels, cast(Normalized, statistics)))
        loss.backward()
        if run.optim.clip is not None:
            torch.nn.utils.clip_grad_norm_(parameters, run.optim.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return Contender(name, run, step)


def _statistics(run: RunConfig) -> ChannelStatistics:
    """Mean and standard deviation of each channel; those of uniform noise if they were to be computed."""
    channels = run.data.channel_count
    return resolve_statistics(run.data.mean, run.data.std, lambda: ([0.5] * channels, [0.29] * channels), channels == 3)
