"""The training of a classifier: the steps, and everything around them."""

import math
import time
from collections.abc import Generator
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor

from hardpatch import __version__
from hardpatch.data.augment import EvalTransform
from hardpatch.data.bad_files import BadFiles
from hardpatch.data.batch import Batch
from hardpatch.data.loader import eval_batches, train_batches
from hardpatch.data.sources import Source
from hardpatch.data.workers import resolve_workers
from hardpatch.errors import UserError
from hardpatch.finetune.augment import FinetuneTransform, Mixer
from hardpatch.finetune.measure import Evaluation
from hardpatch.finetune.model import Classifier
from hardpatch.finetune.settings import FinetuneRun
from hardpatch.interchange.backbone import encoder_settings
from hardpatch.measure.labels import LARGE_IMAGE
from hardpatch.schedules import learning_rate
from hardpatch.train import checkpoint, supervised
from hardpatch.train.metrics import MetricsLog
from hardpatch.train.optimizer import layer_decay_groups
from hardpatch.train.progress import Progress
from hardpatch.train.settings import to_dict

KIND = "classifier"
"""In the metadata of checkpoints, which are no pre-training run's."""
ADVICE = (
    "a lower --base_lr, --clip 1, or --precision fp32 (bf16 rather than fp16), then go on from the last checkpoint "
    "with --resume or start anew"
)
"""For a loss that is not finite."""


class Finetuner:
    """A run: its steps, and everything around them.

    Args:
        run: the settings.
        folder: of the run.
        train, val: labeled images.
        classes: names of the classes, in the order of the labels of ``train``.
        number: the class of each label of ``val``; see :func:`~hardpatch.measure.features.align_labels`.
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

    def fit(self, progress: Progress, signals: list[int]) -> Evaluation | None:
        """Train to the end, or until something comes into ``signals``; a checkpoint is written either way, and from
        time to time.

        Returns:
            The last measurement, None if there was none.

        Raises:
            UserError: if too many images cannot be decoded.
            TrainingError: if the loss becomes NaN or infinite.
        """
        run = self.run
        bad = BadFiles(len(self.source), run.max_bad_fraction)
        metrics = MetricsLog(self.folder, self.step)
        batches = self._batches()
        saved_at = logged_at = time.monotonic()
        self.logged, stopping = self.step, False
        found: Evaluation | None = None
        progress.start(self.step, self.total, run.batch_size)
        try:
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
        return found

    def train_step(self, batch: Batch, lr: float) -> None:
        """One optimizer step."""
        pieces, device = self.run.accumulation_steps, self.fabric.device
        supervised.seed_step(self.run.seed, self.step)
        images = self.model.normalize(batch.images.to(device, non_blocking=True))
        images, targets = self.mixer(images, batch.labels.to(device, non_blocking=True), self.step)
        for part, target in zip(images.chunk(pieces), targets.chunk(pieces), strict=True):
            loss = F.cross_entropy(self.network(part).float(), target)
            self.fabric.backward(loss / pieces)
            self.loss_sum += loss.detach() / pieces
        supervised.set_rates(self.adamw, lr)
        if self.run.clip is not None:
            self.fabric.clip_gradients(self.network, self.optimizer, max_norm=self.run.clip, error_if_nonfinite=False)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        if self.average is not None:
            self.average.update(self.model, step=self.step)

    @torch.inference_mode()
    def evaluate(self) -> Evaluation:
        """Every validation image once, whole or its center. Waits for the device.

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
            batch_size=max(1, self.run.batch_size // self.run.accumulation_steps),
            workers=resolve_workers(self.run.workers),
            pin_memory=device.type == "cuda",
        ):
            labels = self.number[batch.labels.to(device, non_blocking=True)]
            with self.fabric.autocast():
                scores = model(model.normalize(batch.images.to(device, non_blocking=True))).float()
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
            raise supervised.diverged(self.step, self.step, ADVICE)
        checkpoint.save(
            self.folder / "checkpoints",
            self.step,
            student=self.model,
            teacher=None if self.average is None else self.average.module,
            optimizer=self.adamw,
            metadata={
                "hardpatch": __version__,
                "kind": KIND,
                "finetune": to_dict(self.run),
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
            raise supervised.diverged(self.logged + 1, self.step, ADVICE)
        return {
            "step": self.step,
            "epoch": self.step / self.epoch_steps,
            "loss": loss,
            "lr": lr,
            "images_per_second": steps * self.run.batch_size / seconds,
        }


def _size(run: FinetuneRun, model: Classifier) -> tuple[int, int]:
    """(height, width) of the crops, pixels."""
    if run.image_size is not None:
        return run.image_size, run.image_size
    patch = model.encoder.patch_size
    return model.encoder.grid[0] * patch, model.encoder.grid[1] * patch
