"""Fine-tuning: a pre-trained encoder and a linear layer trained together under labels (the paper's Table S2)."""

import json
import logging
import math
import os
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
import yaml
from lightning_fabric import Fabric
from safetensors.torch import load_file
from torch import Tensor

from hardpatch import __version__
from hardpatch.data.augment import EvalTransform
from hardpatch.data.loader import BadFiles, Batch, eval_batches, resolve_workers, train_batches
from hardpatch.data.sources import Source, open_source
from hardpatch.errors import TrainingError, UserError
from hardpatch.evaluate import finetune_settings as settings
from hardpatch.evaluate.features import align_labels
from hardpatch.evaluate.finetune_augment import FinetuneTransform, Mixer
from hardpatch.evaluate.finetune_settings import FinetuneRun
from hardpatch.evaluate.labelled import LARGE_IMAGE
from hardpatch.figures import training_curves
from hardpatch.interchange.backbone import build_encoder, encoder_settings, load_backbone
from hardpatch.interchange.load import weights_file
from hardpatch.models.classifier import Classifier, layer_decay_groups
from hardpatch.schedules import learning_rate
from hardpatch.train import checkpoint
from hardpatch.train import folder as run_folder
from hardpatch.train.loop import Progress, interruptions, start_fabric
from hardpatch.train.monitor import MetricsLog, read_metrics

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("hardpatch")

KIND = "classifier"
CONFUSIONS_TOLD = 20
"""The most frequent mistakes that ``accuracy.json`` names."""
NAMED_CLASSES, NUMBERED_CLASSES = 100, 15
"""Up to so many classes the confusion picture has their names, and the numbers of images."""

README = """# A network fine-tuned with hardpatch

Made by `{command}`.

| file | what |
|---|---|
| `config.yaml` | every setting |
| `environment.json` | versions and hardware |
| `metrics.jsonl` | a JSON object a line: loss, learning rate, sometimes validation loss, top-1 and top-5 |
| `accuracy.json` | the result after the last epoch: top-1, top-5, accuracy of each class, the most frequent mistakes |
| `tensorboard/` | the metrics for `tensorboard --logdir` |
| `checkpoints/` | `step_*/model.safetensors`: weights, names of the classes; `training.safetensors`: optimiser |
| `pictures/` | `curves.png`; `confusion.png`: which classes are taken for which |

If it was interrupted, go on with

    hardpatch finetune --resume --out {folder}

In Python, `hardpatch.evaluate.finetune.load_classifier("{folder}")` gives the network.
"""


@dataclass(frozen=True)
class Evaluation:
    """What a classifier makes of labelled images."""

    confusion: Tensor
    """int64 ``[classes, classes]``: images of a class (row) that were taken for another (column)"""
    top5: float
    """share of the images whose class is among the five (or all, if there are fewer) with the highest scores"""
    loss: float
    """mean cross-entropy, without smoothing"""

    @property
    def images(self) -> int:
        """How many there were."""
        return int(self.confusion.sum())

    @property
    def top1(self) -> float:
        """Share of the images whose class has the highest score."""
        return float(self.confusion.trace()) / self.images


@dataclass(frozen=True)
class Result:
    """How a call of :func:`finetune` ended. Accuracies are shares in [0, 1], NaN where the run was interrupted."""

    top1: float
    """after the last epoch: the result"""
    top5: float
    best_top1: float
    """of all measurements. They were made on the images that it is told of, so it flatters"""
    best_epoch: float
    checkpoint: Path
    step: int
    """optimiser steps done"""
    total: int
    signal: int = 0
    """what interrupted it, 0 if nothing did"""

    @property
    def finished(self) -> bool:
        """False where the run was interrupted."""
        return self.step == self.total


class LoadedClassifier(NamedTuple):
    """A fine-tuned network and what its scores mean."""

    model: Classifier
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    """(height, width) it was trained at, pixels"""


class _Silent:
    """A progress that shows nothing."""

    def start(self, step: int, total: int, batch_size: int) -> None: ...
    def advance(self) -> None: ...
    def metrics(self, row: dict[str, Any]) -> None: ...
    def stop(self) -> None: ...


def finetune(
    run: FinetuneRun,
    folder: Path,
    *,
    resume: bool = False,
    progress: Progress | None = None,
    arguments: Sequence[str] = (),
    prepare: Callable[[], None] = lambda: None,
) -> Result:
    """Train until the end, or until SIGINT or SIGTERM.

    Args:
        run: the settings; see :func:`~hardpatch.evaluate.finetune_settings.configure`.
        folder: of the run; new, or with ``resume`` one that was begun with these settings.
        resume: go on from the newest checkpoint in ``folder``.
        progress: is told of steps and metrics.
        arguments: the command line that this came from, for the folder's README.
        prepare: called when the folder has been made.

    Raises:
        UserError: for a mistake in the settings or the data, before anything is written.
        TrainingError: if the loss becomes NaN or infinite.
    """
    if resume:
        check_resume(folder, run)
    else:
        run_folder.check_new(folder)
    sources = _open("--train", run.train), _open("--val", run.val)
    classes, number = align_labels(*sources)
    if len(classes) < 2:
        raise UserError(f"--train: expected two classes or more, got one, {classes[0]!r}")
    fabric = start_fabric(run.device, run.precision, "--")
    newest = checkpoint.newest(folder)
    # A run that goes on does not need what it began with, which may have been trained further since.
    model = _initial(run, len(classes)) if newest is None else load_classifier(newest).model
    trainer = Finetuner(run, folder, sources[0], sources[1], classes, number, model, fabric)
    if newest is not None:
        trainer.restore(newest)
    run_folder.write_files(
        folder, settings.to_yaml(run), arguments or ["finetune", run.run, "--out", str(folder)], README
    )
    prepare()
    if len(sources[0]) < run.batch_size:
        log.warning("%d images are less than a batch of %d; see --preset", len(sources[0]), run.batch_size)
    return trainer.fit(progress or _Silent())


def check_resume(folder: Path, run: FinetuneRun) -> None:
    """Refuse to go on with other settings than a run began with.

    Raises:
        UserError: names every setting that differs, with both values.
    """
    before, now = settings.to_dict(read_settings(folder)), settings.to_dict(run)
    changed = [name for name in now if before[name] != now[name] and name not in settings.FREE_TO_CHANGE]
    if changed:
        told = "; ".join(f"{name} was {before[name]!r}, now {now[name]!r}" for name in changed)
        raise UserError(f"--resume: {folder} was made with other settings: {told}; take those, or another --out")


def read_settings(folder: Path) -> FinetuneRun:
    """The settings that a run folder was made with.

    Raises:
        UserError: if there are none.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"--out: expected a run folder with config.yaml to go on with, found none in {folder}")
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "run" not in values:
        raise UserError(f"--out: expected a folder of hardpatch finetune, {folder} is one of another verb")
    return settings.build(values)


class Finetuner:
    """A run: its steps, and everything around them.

    Args:
        run: the settings.
        folder: of the run.
        train, val: labelled images.
        classes: names of the classes, in the order of the labels of ``train``.
        number: the class of each label of ``val``; see :func:`~hardpatch.evaluate.features.align_labels`.
        model: the network to start from.
        fabric: device and precision.

    Raises:
        UserError: if batches cannot be mixed.
    """

    def __init__(
        self,
        run: FinetuneRun,
        folder: Path,
        train: Source,
        val: Source,
        classes: tuple[str, ...],
        number: Tensor,
        model: Classifier,
        fabric: Fabric,
    ) -> None:
        self.run, self.folder, self.source, self.val, self.classes = run, folder, train, val, classes
        self.model = model.to(fabric.device).train()
        self.number, self.fabric = number.to(fabric.device), fabric
        self.image_size = _size(run, model)
        self.step, self.total = 0, max(1, round(run.epochs * len(train) / run.batch_size))
        self.epoch_steps = len(train) / run.batch_size
        self.peak = run.base_lr * run.batch_size / 256
        self.average = None
        if run.ema is not None:
            from timm.utils.model_ema import ModelEmaV3

            self.average = ModelEmaV3(self.model, decay=run.ema, use_warmup=True)
        assert run.layer_decay is not None
        groups = layer_decay_groups(self.model, run.weight_decay, run.layer_decay)
        # The fused step unscales float16 gradients by itself, after they should have been clipped.
        fused = fabric.device.type != "mps" and run.precision != "fp16"
        self.adamw = torch.optim.AdamW(groups, lr=0.0, betas=run.betas, fused=fused)
        self.network, self.optimizer = fabric.setup(self.model, self.adamw)
        self.mixer = Mixer(
            len(classes),
            mixup=run.mixup,
            cutmix=run.cutmix,
            probability=run.mix_prob,
            smoothing=run.smoothing,
            seed=run.seed,
        )
        self.bad_val = BadFiles(len(val), run.max_bad_fraction)
        self.loss_sum, self.logged = torch.zeros((), device=fabric.device), 0

    @property
    def judged(self) -> Classifier:
        """The network whose accuracy counts: the moving average where there is one."""
        return self.model if self.average is None else self.average.module

    def fit(self, progress: Progress) -> Result:
        """Train to the end or until interrupted; a checkpoint is written either way, and from time to time."""
        run = self.run
        bad = BadFiles(len(self.source), run.max_bad_fraction)
        metrics = MetricsLog(self.folder, self.step)
        batches = self._batches()
        saved_at = logged_at = time.monotonic()
        self.logged, stopping = self.step, False
        found: Evaluation | None = None
        progress.start(self.step, self.total, run.batch_size)
        try:
            with interruptions() as signals:
                while self.step < self.total and not stopping:
                    batch = next(batches)
                    bad.update(batch.bad)
                    lr = learning_rate(self.step / self.total, self.peak, run.min_lr, run.warmup_epochs / run.epochs)
                    self.train_step(batch, lr)
                    progress.advance()
                    stopping = bool(signals)
                    last = self.step == self.total
                    save = last or stopping or self.step % (run.checkpoint_steps or self.total) == 0
                    save = save or (time.monotonic() - saved_at) / 60 >= run.checkpoint_minutes
                    judge = last or self._evaluation_is_due()
                    if save or judge or self.step % run.log_every == 0:
                        row = self._metrics(lr, time.monotonic() - logged_at)
                        if judge:
                            found = self.evaluate()
                            row |= {"val_loss": found.loss, "top1": found.top1, "top5": found.top5}
                        metrics.write(row)
                        progress.metrics(row)
                        self.logged, logged_at = self.step, time.monotonic()
                    if save:
                        self.save()
                        saved_at = time.monotonic()
        finally:
            batches.close()
            metrics.close()
            progress.stop()
        saved = checkpoint.newest(self.folder)
        assert saved is not None
        if self.step < self.total:
            return Result(math.nan, math.nan, math.nan, math.nan, saved, self.step, self.total, signals[0])
        return self._finish(found if found is not None else self.evaluate(), saved)

    def train_step(self, batch: Batch, lr: float) -> None:
        """One optimiser step."""
        pieces, device = self.run.accumulate, self.fabric.device
        torch.manual_seed(self.run.seed * 1_000_003 + self.step)  # of drop path: the same after a resume
        images = self.model.normalise(batch.images.to(device, non_blocking=True))
        images, targets = self.mixer(images, batch.labels.to(device, non_blocking=True), self.step)
        for part, target in zip(images.chunk(pieces), targets.chunk(pieces), strict=True):
            loss = F.cross_entropy(self.network(part).float(), target)
            self.fabric.backward(loss / pieces)
            self.loss_sum += loss.detach() / pieces
        for group in self.adamw.param_groups:
            group["lr"] = lr * group["lr_scale"]
        if self.run.clip is not None:
            self.fabric.clip_gradients(self.network, self.optimizer, max_norm=self.run.clip, error_if_nonfinite=False)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        if self.average is not None:
            self.average.update(self.model, step=self.step)

    @torch.inference_mode()
    def evaluate(self) -> Evaluation:
        """Every validation image once, whole or its centre. Waits for the device.

        Raises:
            UserError: if too many of them cannot be decoded.
        """
        model, size, count = self.judged.eval(), self.image_size, len(self.classes)
        device = self.fabric.device
        transform = EvalTransform(size, len(model.mean), 0.875 if min(size) >= LARGE_IMAGE else 1.0)
        confusion = torch.zeros(count * count, dtype=torch.int64, device=device)
        sums = torch.zeros(2, dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
        bad: list[str] = []
        for batch in eval_batches(
            self.val,
            transform,
            batch_size=max(1, self.run.batch_size // self.run.accumulate),
            workers=resolve_workers(self.run.workers),
            pin_memory=device.type == "cuda",
        ):
            labels = self.number[batch.labels.to(device, non_blocking=True)]
            with self.fabric.autocast():
                scores = model(model.normalise(batch.images.to(device, non_blocking=True))).float()
            likeliest = scores.topk(min(5, count), dim=1).indices
            places = labels * count + likeliest[:, 0]
            confusion.scatter_add_(0, places, torch.ones_like(places))
            sums += torch.stack(
                [F.cross_entropy(scores, labels, reduction="sum"), (likeliest == labels.unsqueeze(1)).sum()]
            )
            bad.extend(batch.bad)
        self.model.train()
        self.bad_val.update(bad)
        found = confusion.cpu().view(count, count)
        loss, top5 = (sums / int(found.sum())).tolist()
        return Evaluation(found, top5, loss)

    def save(self) -> None:
        """Write a checkpoint of this step.

        Raises:
            TrainingError: if a weight is not finite: the last loss was, but its gradient was not.
        """
        if not torch.stack(torch._foreach_norm(list(self.model.parameters()))).isfinite().all():
            raise _diverged(self.step, self.step)
        checkpoint.save(
            self.folder / "checkpoints",
            self.step,
            student=self.model,
            teacher=None if self.average is None else self.average.module,
            optimizer=self.adamw,
            metadata={
                "hardpatch": __version__,
                "kind": KIND,
                "finetune": settings.to_dict(self.run),
                "encoder": encoder_settings(self.model.encoder),
                "classes": list(self.classes),
                "image_size": list(self.image_size),
                "mean": self.model.mean.tolist(),
                "std": self.model.std.tolist(),
                "step": self.step,
                "steps": self.total,
                "images": len(self.source),
            },
            scaler=self.fabric.strategy.precision.state_dict(),
            keep=1,
        )

    def restore(self, folder: Path) -> None:
        """Go back to a checkpoint of this run, to the bit.

        Raises:
            UserError: if the data set has other classes or another number of images now.
        """
        then = checkpoint.read_metadata(folder / checkpoint.WEIGHTS) or {}
        if (then["images"], then["classes"]) != (len(self.source), list(self.classes)):
            raise UserError(
                f"--resume: the run began with {then['images']} images of {len(then['classes'])} classes and --train "
                f"now has {len(self.source)} of {len(self.classes)}, or others; put the set back as it was, or start "
                "anew with another --out"
            )
        self.step, scaler = checkpoint.restore(
            folder,
            student=self.model,
            teacher=None if self.average is None else self.average.module,
            optimizer=self.adamw,
        )
        if scaler:
            self.fabric.strategy.precision.load_state_dict(scaler)

    def _batches(self) -> Generator[Batch, None, None]:
        run, model = self.run, self.model
        transform = FinetuneTransform(
            self.image_size,
            len(model.mean),
            run.crop_scale,
            run.crop_ratio,
            run.flip,
            mean=tuple(model.mean.tolist()),
            std=tuple(model.std.tolist()),
            magnitude=run.randaugment,
            magnitude_std=run.randaugment_std,
            erase=run.erase,
        )
        return train_batches(
            self.source,
            transform,
            batch_size=run.batch_size,
            seed=run.seed,
            start=self.step,
            workers=resolve_workers(run.workers),
            pin_memory=self.fabric.device.type == "cuda",
        )

    def _evaluation_is_due(self) -> bool:
        every = self.run.eval_epochs * self.epoch_steps
        return self.step // every > (self.step - 1) // every

    def _metrics(self, lr: float, seconds: float) -> dict[str, float]:
        """A line of metrics: the mean loss since the last one. Waits for the device."""
        steps = self.step - self.logged
        loss = self.loss_sum.item() / steps
        self.loss_sum.zero_()
        if not math.isfinite(loss):
            raise _diverged(self.logged + 1, self.step)
        return {
            "step": self.step,
            "epoch": self.step / self.epoch_steps,
            "loss": loss,
            "lr": lr,
            "images_per_second": steps * self.run.batch_size / seconds,
        }

    def _finish(self, found: Evaluation, saved: Path) -> Result:
        """Write accuracy.json and the pictures."""
        rows = [row for row in read_metrics(self.folder / "metrics.jsonl") if "top1" in row]
        best = max(rows, key=lambda row: row["top1"])
        result = Result(found.top1, found.top5, best["top1"], best["epoch"], saved, self.step, self.total)
        partial = self.folder / ".accuracy.json.partial"
        partial.write_text(json.dumps(report(result, found, self.classes), indent=2) + "\n", encoding="utf-8")
        os.replace(partial, self.folder / "accuracy.json")
        pictures = self.folder / "pictures"
        training_curves(read_metrics(self.folder / "metrics.jsonl"), pictures / "curves.png")
        confusion_figure(found.confusion, self.classes).savefig(pictures / "confusion.png")
        return result


def report(result: Result, found: Evaluation, classes: Sequence[str]) -> dict[str, Any]:
    """What ``accuracy.json`` holds: accuracies are shares in [0, 1], None for a class without validation images."""
    images, right = found.confusion.sum(dim=1).tolist(), found.confusion.diag().tolist()
    wrong = found.confusion.clone().fill_diagonal_(0)
    counts, places = wrong.flatten().topk(min(CONFUSIONS_TOLD, wrong.numel()))
    return {
        "top1": result.top1,
        "top5": result.top5,
        "val_loss": found.loss,
        "images": found.images,
        "best_top1": result.best_top1,
        "best_epoch": result.best_epoch,
        "classes": [
            {"name": name, "images": count, "top1": hits / count if count else None}
            for name, count, hits in zip(classes, images, right, strict=True)
        ],
        "confusions": [
            {"class": classes[place // len(classes)], "taken_for": classes[place % len(classes)], "images": count}
            for count, place in zip(counts.tolist(), places.tolist(), strict=True)
            if count
        ],
    }


def confusion_figure(confusion: Tensor, classes: Sequence[str]) -> "Figure":
    """Rows are true classes, columns what they were taken for, in shares of the row."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    count = len(classes)
    shares = (confusion / confusion.sum(dim=1, keepdim=True).clamp_min(1)).numpy()
    side = min(13.0, 4.0 + 0.15 * count)  # inches
    figure = Figure(figsize=(side + 1, side), dpi=110, layout=ConstrainedLayoutEngine(), facecolor="white")
    axes = figure.add_subplot()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xlabel("taken for")
    axes.set_ylabel("class")
    if count <= NAMED_CLASSES:
        size = min(8.0, 55 * side / count)  # points: rows must not run into each other
        names = [name if len(name) <= 20 else f"{name[:19]}…" for name in classes]
        axes.set_xticks(range(count), names, rotation=90, fontsize=size, parse_math=False)
        axes.set_yticks(range(count), names, fontsize=size, parse_math=False)
    if count <= NUMBERED_CLASSES:
        for row in range(count):
            for column in range(count):
                colour = "white" if shares[row, column] > 0.5 else "#333333"
                axes.text(
                    column, row, f"{int(confusion[row, column])}", ha="center", va="center", color=colour, fontsize=8
                )
    figure.colorbar(picture, ax=axes, label="share of the class's images", shrink=0.8)
    return figure


def load_classifier(path: str | Path) -> LoadedClassifier:
    """A fine-tuned network in eval mode: ``model(model.normalise(uint8 images))`` gives scores ``[B, classes]``.

    Args:
        path: a run folder of :func:`finetune` (its newest checkpoint), one checkpoint's folder, or its
            ``model.safetensors``. Where the run has a moving average of its weights, that is what is loaded.

    Raises:
        UserError: if there is nothing to load, or it is of another kind.
    """
    file = weights_file(path)
    metadata = (checkpoint.read_metadata(file) if file.suffix == ".safetensors" else None) or {}
    if metadata.get("kind") != KIND:
        raise UserError(f"RUN: expected a network of hardpatch finetune, {file} is of another kind")
    state = load_file(file)
    weights = checkpoint.with_prefix(state, "teacher.") or checkpoint.with_prefix(state, "student.")
    size = (metadata["image_size"][0], metadata["image_size"][1])
    model = Classifier(
        build_encoder(metadata["encoder"]),
        len(metadata["classes"]),
        mean=metadata["mean"],
        std=metadata["std"],
        drop_path=metadata["finetune"]["drop_path"],
    )
    model.load_state_dict(weights)
    return LoadedClassifier(model.eval(), tuple(metadata["classes"]), size)


def _initial(run: FinetuneRun, classes: int) -> Classifier:
    """The network with which a run begins.

    Raises:
        UserError: if the weights cannot be loaded or the image size does not fit.
    """
    encoder, mean, std = load_backbone(run.run, run.weights)
    size = None if run.image_size is None else (run.image_size, run.image_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        if run.from_scratch:
            shape = encoder_settings(encoder)
            if shape["positions"] == "learned":
                shape["positions"] = "sincos"
            encoder = build_encoder(shape)
        try:
            return Classifier(encoder, classes, mean=mean, std=std, image_size=size, drop_path=run.drop_path)
        except ValueError as error:
            raise UserError(f"--image_size: {error}") from None


def _size(run: FinetuneRun, model: Classifier) -> tuple[int, int]:
    """(height, width) of the crops, pixels."""
    if run.image_size is not None:
        return run.image_size, run.image_size
    patch = model.encoder.patch_size
    return model.encoder.grid[0] * patch, model.encoder.grid[1] * patch


def _open(argument: str, path: str) -> Source:
    try:
        return open_source(path)
    except UserError as error:
        raise UserError(f"{argument}: {error}") from None


def _diverged(first: int, last: int) -> TrainingError:
    return TrainingError(
        f"the loss became NaN or infinite between steps {first} and {last}; nothing of that was saved. Try a lower "
        "--base_lr, --clip 1, or --precision fp32 (bf16 rather than fp16), then go on from the last checkpoint with "
        "--resume or start anew"
    )
