"""Training of Mask R-CNN on an encoder, as a job of the training loop: ViTDet's recipe."""

from collections.abc import Generator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricOptimizer
from torch import nn

from hardpatch.data.bad_files import BadFiles, nothing_decodable
from hardpatch.detect.annotations import AnnotationSet
from hardpatch.detect.batches import DetectionBatch, ScaleJitter, evaluation_batches, training_batches
from hardpatch.detect.measure import Precision, average_precision, detect
from hardpatch.detect.model import check_sizes, mask_rcnn
from hardpatch.detect.sampling import seed_samplers, weights_of_losses
from hardpatch.detect.settings import DetectSettings, step_learning_rate
from hardpatch.errors import UserError
from hardpatch.interchange.backbone import Backbone
from hardpatch.models.encoder_settings import encoder_settings
from hardpatch.models.transfer import train_positions
from hardpatch.processes import on_first
from hardpatch.randomness import seed_step
from hardpatch.train.bad_steps import BadSteps, means_of, running_statistics
from hardpatch.train.cadence import cadence_of
from hardpatch.train.device import autocast_dtype, loader_workers
from hardpatch.train.extension import course
from hardpatch.train.freeze import freeze
from hardpatch.train.memory import bytes_per_parameter, check_memory
from hardpatch.train.optimizer import BETAS, fused_on_gpu, layer_decay_groups, parameter_groups, set_learning_rate
from hardpatch.train.parallel import take_part, without_exchange
from hardpatch.train.settings import to_dict
from hardpatch.train.sharding import WholeCopy
from hardpatch.train.state import TrainingState

KIND = "detector"
"""Entry in the metadata of checkpoints, by which they are recognized."""
LOSSES = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask")
"""Losses of torchvision's Mask R-CNN, whose sum is minimized; the last one needs a mask head."""


def check_encoder(backbone: Backbone, run: DetectSettings) -> None:
    """Refuse an encoder that the sizes of the settings do not fit.

    Raises:
        UserError: names RUN or the setting.
    """
    patch_size = backbone.encoder.patch_size
    if patch_size % 4:
        raise UserError(f"RUN: expected an encoder whose patch size is a multiple of 4 px, got {patch_size}")
    try:
        check_sizes(patch_size, run.image_size)
    except ValueError as error:
        raise UserError(f"--{error}") from None


def build(
    backbone: Backbone,
    run: DetectSettings,
    classes: int,
    autocast: torch.dtype | None = None,
    *,
    masks: bool = True,
) -> nn.Module:
    """Build the detector; the seed determines the weights of the heads.

    Args:
        backbone: encoder and its normalization.
        run: the settings.
        classes: number of classes, without the background.
        autocast: precision of encoder and pyramid, None for float32.
        masks: add a mask head.

    Raises:
        UserError: if the sizes do not fit the encoder.
    """
    check_encoder(backbone, run)
    weights = 54 * run.channels**2 + 49 * run.channels * run.head_width  # without the encoder
    check_memory(bytes_per_parameter(run.device) * weights, "--channels, --head_width", "a network")
    if run.train_positions:
        train_positions(backbone.encoder)
    names = ["image_size", "window", "channels", "head_width", "rois", "anchor_scale"]
    names += ["relative_positions", "sampling_ratio"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        try:
            return mask_rcnn(
                backbone.encoder,
                backbone.mean,
                backbone.std,
                backbone.reading,
                classes=classes,
                autocast=autocast,
                masks=masks,
                global_blocks=min(run.global_blocks, len(backbone.encoder.blocks)),
                **{name: getattr(run, name) for name in names},
            )
        except ValueError as error:
            raise UserError(f"--{error}") from None


@dataclass
class EvaluationResult:
    """Average precision, and the detections from which it was computed."""

    precision: Precision
    detections: list[dict[str, Any]] = field(repr=False)
    """COCO results"""

    def metrics(self) -> dict[str, float]:
        """Return AP of boxes and, if measured, of masks for the log; nothing if there are no annotated objects."""
        aps = {f"{kind}_ap": values["AP"] for kind, values in self.precision.items()}
        return {name: ap for name, ap in aps.items() if ap is not None}


class DetectJob:
    """A detector in training.

    Args:
        run: the settings.
        folder: of the run.
        train: annotations to learn from, and the folder of their images.
        val: annotations to evaluate on, and the folder of their images.
        backbone: encoder to train, and its normalization.
        fabric: device and precision. Encoder and pyramid run in half precision, the heads always in float32.
        masks: train a mask head, and measure masks on ``val``.
        bad: number of images of ``train`` and of ``val`` that cannot be used and are not in the sets.

    Raises:
        UserError: if the sizes do not fit the encoder.
    """

    def __init__(
        self,
        run: DetectSettings,
        folder: Path,
        train: tuple[AnnotationSet, Path],
        val: tuple[AnnotationSet, Path],
        backbone: Backbone,
        fabric: Fabric,
        masks: tuple[bool, bool] = (True, True),
        bad: tuple[int, int] = (0, 0),
    ) -> None:
        self.run, self.folder, self.train, self.val, self.fabric = run, folder, train, val, fabric
        self.masks, self.kinds = masks[0], ("box", "mask") if all(masks) else ("box",)
        self.losses = LOSSES if self.masks else LOSSES[:-1]
        self.encoder, self.reading = backbone.encoder, backbone.reading
        categories = train[0].categories
        model = build(backbone, run, len(categories), autocast_dtype(fabric), masks=self.masks)
        self.frozen = freeze(backbone.encoder, run.freeze)
        self.model = model.to(fabric.device).train()
        self.images, self.batch_size = len(train[0].images), run.batch_size
        self.step, self.total = 0, run.total_steps(self.images)
        self.part = take_part(run.batch_size, run.accumulation_steps)
        self.whole_model = WholeCopy(fabric, self.model)
        # not by Fabric, whose wrapper would run the heads in half precision
        self.network = fabric.strategy.setup_module(self.model)
        adamw = torch.optim.AdamW(
            groups(self.model, run), lr=run.lr, betas=BETAS, fused=fused_on_gpu(fabric, run.precision)
        )
        optimizer = fabric.setup_optimizers(adamw)
        assert isinstance(optimizer, _FabricOptimizer)
        self.optimizer = optimizer
        self._sums, self._steps = torch.zeros(len(self.losses), device=fabric.device), 0
        running = [*running_statistics(self.model), self._sums]
        self.bad_steps = BadSteps(fabric, self.optimizer, run, running)
        self.state = TrainingState(fabric, self.model, adamw, self.bad_steps, background=run.background_saving)
        self.metadata = {
            "kind": KIND,
            "detect": to_dict(run),
            "encoder": encoder_settings(backbone.encoder),
            "mean": list(backbone.mean),
            "std": list(backbone.std),
            "reading": backbone.reading.to_dict(),
            "categories": list(categories.items()),
            "masks": self.masks,
            "steps": self.total,
            "images": self.images,
        }
        self.cadence = cadence_of(run, self.total, self.images)
        self.bad_files, self.bad_val = (
            BadFiles(len(annotations.images) + number, run.max_bad_fraction, "--max_bad_fraction", verb="use")
            for (annotations, _), number in zip((train, val), bad, strict=True)
        )
        self.evaluation: EvaluationResult | None = None
        self.evaluated_set = val[0]

    def batches(self) -> Generator[DetectionBatch, None, None]:
        """Load augmented batches from the next step on."""
        run = self.run
        return training_batches(
            *self.train,
            ScaleJitter(run.image_size, run.jitter, run.flip),
            batch_size=run.batch_size,
            seed=run.seed,
            reading=self.reading,
            start=self.step,
            workers=loader_workers(run.workers),
            rank=self.part.rank,
            world_size=self.part.world_size,
            masks=self.masks,
        )

    def train_step(self, batch: DetectionBatch, *, observe: bool = False) -> None:
        """Take one optimizer step."""
        run, device, samples = self.run, self.fabric.device, batch.samples
        seed_step(run.seed, self.step)
        self.bad_steps.begin()
        set_learning_rate(self.state.optimizer, self._learning_rate(self.step))
        for start in range(run.accumulation_steps):
            micro_batch = samples[start :: run.accumulation_steps]
            images = [sample.image.to(device, non_blocking=True) for sample in micro_batch]
            targets = [{k: v.to(device, non_blocking=True) for k, v in sample.target.items()} for sample in micro_batch]
            seed_samplers(self.model, run.seed, self.step, [sample.image_index for sample in micro_batch])
            with without_exchange(self.fabric, self.network, start < run.accumulation_steps - 1):
                losses_by_name = self.network(images, targets)
                losses = torch.stack([losses_by_name[name].float() for name in self.losses])
                weights = weights_of_losses(self.model, self.masks) * (len(micro_batch) / len(samples))
                losses = torch.where(weights > 0, losses * weights, 0.0)  # a mean over nothing is NaN
                self.fabric.backward(self.bad_steps.nan_unless_finite(losses.sum()))
            self._sums += losses.detach()
        self.bad_steps.update(run.clip)
        self.step += 1
        self._steps += 1

    def metrics(self) -> dict[str, float]:
        """Return mean losses since the last call, and the learning rate of the last step."""
        means = means_of(self._sums, self._steps, self.bad_steps)
        self._steps = 0
        losses = {"loss": sum(means), **dict(zip(self.losses, means, strict=True))} if means else {}
        return losses | {"lr": self._learning_rate(self.step - 1)}

    def _learning_rate(self, step: int) -> float:
        """Return the learning rate of optimizer step ``step``, counted from 0."""
        planned = course(self.total, self.run.extensions)
        return planned.rate(step, partial(step_learning_rate, run=self.run)) * self.bad_steps.lr_factor

    def evaluate(self) -> dict[str, float]:
        """Detect objects in the validation images, keep the result as :attr:`evaluation`, and return its APs.

        Images that cannot be used are left out of the average precision.

        Raises:
            UserError: if too many of them cannot be used.
        """
        model = self.whole_model.gather()
        results, indices, bad = on_first(lambda: self._detect(model))
        self.whole_model.release()
        annotations = self.val[0]
        self.bad_val.update(bad)
        if not indices:
            raise nothing_decodable(len(annotations.images), bad)
        self.evaluated_set = annotations.without(set(range(len(annotations.images))) - indices)
        precision = average_precision(self.evaluated_set.ground_truth(), results, self.kinds)
        self.evaluation = EvaluationResult(precision, results)
        return self.evaluation.metrics()

    def _detect(self, model: nn.Module) -> tuple[list[dict[str, Any]], set[int], list[str]]:
        """Detect objects in the validation images; see :func:`~hardpatch.detect.measure.detect`."""
        annotations, folder = self.val
        batches = evaluation_batches(
            annotations,
            folder,
            self.run.image_size,
            batch_size=max(1, self.run.batch_size // self.run.accumulation_steps),
            reading=self.reading,
            workers=loader_workers(self.run.workers),
        )
        detections = detect(model.eval(), batches, annotations)
        model.train()
        return detections

    def save(self) -> None:
        """Write a checkpoint of this step."""
        run = self.run
        self.state.save(self.folder, self.step, self.metadata, keep=run.keep_checkpoints, keep_every=run.keep_every)

    def restore(self, saved: Path) -> None:
        """Go back to a checkpoint of this run, to the bit."""
        self.step = self.state.restore(saved, to_dict(self.run), "detect")


def groups(model: Any, run: DetectSettings) -> list[dict[str, Any]]:
    """Group the parameters of :func:`~hardpatch.detect.model.mask_rcnn` for the optimizer.

    ``lr_scale`` is 1 for pyramid and heads, and falls in the encoder from each block to the one below it.
    """
    backbone = layer_decay_groups(model.backbone, run.weight_decay, run.layer_decay or 1.0)
    heads = [group for part in (model.rpn, model.roi_heads) for group in parameter_groups(part, run.weight_decay)]
    return backbone + [group | {"lr_scale": 1.0} for group in heads]
