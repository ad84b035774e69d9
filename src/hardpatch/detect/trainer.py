"""Fine-tuning of an encoder for object detection and instance segmentation: Mask R-CNN with ViTDet's recipe."""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from hardpatch.detect.batches import Sample, ScaleJitter, evaluation_samples, training_samples
from hardpatch.detect.data import CocoSet
from hardpatch.detect.measure import Precision, average_precision, detect
from hardpatch.detect.model import mask_rcnn
from hardpatch.detect.settings import DetectionRun, from_dict, step_learning_rate, total_steps
from hardpatch.errors import UserError
from hardpatch.interchange.backbone import Backbone, build_encoder, encoder_settings
from hardpatch.train import checkpoint, supervised
from hardpatch.train.metrics import MetricsLog
from hardpatch.train.optimizer import layer_decay_groups, parameter_groups
from hardpatch.train.settings import to_dict

if TYPE_CHECKING:
    from hardpatch.train.progress import Progress

KIND = "detector"
"""In the metadata of checkpoints, which are no pre-training run's."""
RESULT, DETECTIONS = "result.json", "detections.json"
LOSSES = ("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask")


def build(backbone: Backbone, run: DetectionRun, classes: int, device: torch.device) -> nn.Module:
    """The detector on a device, heads drawn by the seed.

    Raises:
        UserError: if the sizes do not fit the encoder.
    """
    bf16 = run.precision == "bf16" or (run.precision == "auto" and device.type == "cuda")
    names = ("image_size", "window", "channels", "head_width", "rois", "anchor_scale")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        try:
            model = mask_rcnn(
                backbone.encoder,
                backbone.mean,
                backbone.std,
                classes=classes,
                autocast=bf16,
                global_blocks=min(run.global_blocks, len(backbone.encoder.blocks)),
                **{name: getattr(run, name) for name in names},
            )
        except ValueError as error:
            raise UserError(f"--{error}") from None
    return model.to(device)


@dataclass
class Outcome:
    """What came of a finished run."""

    precision: Precision
    detections: list[dict[str, Any]] = field(repr=False)
    """COCO results"""

    def told(self) -> dict[str, float]:
        """For a line of metrics; without what could not be measured."""
        aps = {f"{kind}_ap": figures["AP"] for kind, figures in self.precision.items()}
        return {name: ap for name, ap in aps.items() if ap is not None}


class DetectionTrainer:
    """A detector in training.

    Args:
        backbone: what to train, and its normalization.
        run: the settings.
        train, val: annotations and the folder of their images.
        folder: of the run; checkpoints go into its ``checkpoints``.
        device, workers: where, and how many processes decode.
        checkpoint_minutes: between checkpoints.

    Raises:
        UserError: if the sizes do not fit the encoder.
    """

    def __init__(
        self,
        backbone: Backbone,
        run: DetectionRun,
        train: tuple[CocoSet, Path],
        val: tuple[CocoSet, Path],
        folder: Path,
        *,
        device: torch.device,
        workers: int = 0,
        checkpoint_minutes: float = 10.0,
    ) -> None:
        self.run, self.train, self.val, self.folder = run, train, val, folder
        self.device, self.workers, self.checkpoint_minutes = device, workers, checkpoint_minutes
        self.model = build(backbone, run, len(train[0].categories), device)
        self.encoder, self.channels = backbone.encoder, backbone.encoder.channels
        self.metadata = {
            "kind": KIND,
            "run": to_dict(run),
            "encoder": encoder_settings(backbone.encoder),
            "mean": list(backbone.mean),
            "std": list(backbone.std),
            "categories": list(train[0].categories.items()),
        }
        self.optimizer = torch.optim.AdamW(groups(self.model, run), lr=run.lr, betas=(0.9, 0.999))
        self.step, self.total = 0, total_steps(run, len(train[0].images))
        self.sums = torch.zeros(len(LOSSES), device=device)

    def restore(self) -> None:
        """Go back to the newest checkpoint of the folder, if there is one, to the bit."""
        self.step = supervised.restore(self.folder, self.model, self.optimizer)

    def save(self) -> None:
        """Write a checkpoint of this step."""
        metadata = self.metadata | {"step": self.step, "steps": self.total}
        supervised.save(self.folder, self.step, self.model, self.optimizer, metadata)

    def fit(self, progress: "Progress", signals: list[int]) -> Outcome | None:
        """Train to the end, from where the run is, and measure; None if something comes into ``signals``, which ends
        the training after the step.

        Raises:
            UserError: if an image cannot be used.
            TrainingError: if the loss becomes NaN or infinite.
        """
        run = self.run
        metrics = MetricsLog(self.folder, self.step)
        transform = ScaleJitter(run.image_size, run.jitter, run.flip)
        batches = training_samples(
            *self.train,
            transform,
            batch_size=run.batch_size,
            seed=run.seed,
            channels=self.channels,
            start=self.step,
            workers=self.workers,
        )
        saved_at = logged_at = time.monotonic()
        logged, stopping = self.step, False
        outcome: Outcome | None = None
        progress.start(self.step, self.total, run.batch_size)
        try:
            while self.step < self.total and not stopping:
                lr = self.train_step(next(batches))
                progress.advance()
                stopping, last = bool(signals), self.step == self.total
                due = last or (run.val_every is not None and self.step % run.val_every == 0)
                row = None
                if due or stopping or self.step % run.log_every == 0:
                    row = self._means(logged) | {"lr": lr}
                    speed = (self.step - logged) * run.batch_size / (time.monotonic() - logged_at)
                    row["images_per_second"] = speed
                if last or stopping or (time.monotonic() - saved_at) / 60 >= self.checkpoint_minutes:
                    self.save()
                    saved_at = time.monotonic()
                if row is not None:
                    if due:
                        outcome = self.judge()
                        row |= outcome.told()
                    metrics.write(row)
                    progress.metrics(row)
                    logged, logged_at = self.step, time.monotonic()
        finally:
            metrics.close()
            progress.stop()
        if self.step < self.total:
            return None
        return outcome or self.judge()  # a finished run that is called again is measured again

    def train_step(self, batch: list[Sample]) -> float:
        """One optimizer step; returns the learning rate of the heads."""
        run, device = self.run, self.device
        supervised.seed_step(run.seed, self.step)
        lr = step_learning_rate(self.step, self.total, run)
        supervised.set_rates(self.optimizer, lr)
        self.model.train()
        self.optimizer.zero_grad()
        for piece in (batch[start :: run.accumulation_steps] for start in range(run.accumulation_steps)):
            images = [sample.image.to(device, non_blocking=True) for sample in piece]
            targets = [{k: v.to(device, non_blocking=True) for k, v in sample.target.items()} for sample in piece]
            found = self.model(images, targets)
            losses = torch.stack([found[name].float() for name in LOSSES]) * (len(piece) / len(batch))
            losses.sum().backward()
            self.sums += losses.detach()
        if run.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), run.clip)
        self.optimizer.step()
        self.step += 1
        return lr

    def judge(self) -> Outcome:
        """Detect in every validation image and measure."""
        coco, folder = self.val
        batches = evaluation_samples(
            coco,
            folder,
            self.run.image_size,
            batch_size=max(1, self.run.batch_size // self.run.accumulation_steps),
            channels=self.channels,
            workers=self.workers,
        )
        self.model.eval()
        detections = detect(self.model, batches, coco)
        return Outcome(average_precision(coco.ground_truth(), detections), detections)

    def _means(self, logged: int) -> dict[str, float]:
        advice = f"an --lr below {self.run.lr:g}, --clip 1, or --precision fp32"
        means = supervised.read_means(self.sums, logged + 1, self.step, advice)
        row = {"step": self.step, "epoch": self.step * self.run.batch_size / len(self.train[0].images)}
        return row | {"loss": sum(means)} | dict(zip(LOSSES, means, strict=True))


def groups(model: Any, run: DetectionRun) -> list[dict[str, Any]]:
    """Parameters of :func:`~hardpatch.detect.model.mask_rcnn`: ``lr_scale`` falls from block to block of the encoder,
    and is 1 for all that is new."""
    heads = [group for part in (model.rpn, model.roi_heads) for group in parameter_groups(part, run.weight_decay)]
    below = layer_decay_groups(model.backbone, run.weight_decay, run.layer_decay)
    return below + [group | {"lr_scale": 1.0} for group in heads]


class Detector(NamedTuple):
    """A trained detector and what its labels mean."""

    model: nn.Module
    """in eval mode, see :func:`~hardpatch.detect.model.mask_rcnn`; images must fit ``image_size``"""
    categories: dict[int, str]
    """names by category id, in the order of the labels from 1"""
    image_size: int
    """side of the canvas, pixels"""


def load_detector(run: str | Path, device: str | torch.device = "cpu") -> Detector:
    """The detector of a run folder of ``hardpatch detect``.

    Raises:
        UserError: if there is none.
    """
    newest = checkpoint.newest(Path(run))
    metadata = None if newest is None else checkpoint.read_metadata(newest / checkpoint.WEIGHTS)
    if newest is None or metadata is None or metadata.get("kind") != KIND:
        raise UserError(f"RUN: expected a folder made by hardpatch detect, got {run}")
    encoder = build_encoder(metadata["encoder"])
    backbone = Backbone(encoder, tuple(metadata["mean"]), tuple(metadata["std"]))
    settings = from_dict(metadata["run"])
    categories = {int(number): name for number, name in metadata["categories"]}
    model = build(backbone, settings, len(categories), torch.device(device))
    state: dict[str, Tensor] = checkpoint.with_prefix(load_file(newest / checkpoint.WEIGHTS), "student.")
    model.load_state_dict(state)
    return Detector(model.eval(), categories, settings.image_size)


def write_result(folder: Path, result: Mapping[str, Any], detections: list[dict[str, Any]]) -> None:
    """Write ``detections.json`` in COCO's layout and ``result.json``, each whole or not at all."""
    for name, content in ((DETECTIONS, detections), (RESULT, result)):
        partial = folder / f".{name}.partial"
        partial.write_text(json.dumps(content, indent=None if name == DETECTIONS else 2) + "\n", encoding="utf-8")
        os.replace(partial, folder / name)
