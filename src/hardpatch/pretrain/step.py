"""One optimizer step: Hard Patches Mining around any host, on any device.

The step up to its loss (teacher, mask, student) is :class:`~hardpatch.methods.hpm.HardPatchesMining`.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from lightning_fabric import Fabric
from torch import Tensor

from hardpatch.configuration.hosts import needs_teacher
from hardpatch.configuration.sections import RunConfig
from hardpatch.data.batch import CROP_OFFSET, Batch
from hardpatch.methods.base import Views
from hardpatch.methods.difficulty_memory import CropBox, DifficultyMemory
from hardpatch.methods.hpm import HPM, HardPatchesMining, Inputs, Losses
from hardpatch.methods.mining import MinedMask
from hardpatch.methods.targets import Target
from hardpatch.methods.teacher import Teacher
from hardpatch.models.block import Block
from hardpatch.models.pixels import to_bytes
from hardpatch.pretrain.compile import begin_step, compile_parts
from hardpatch.pretrain.encoder_rate import drop_gradients
from hardpatch.pretrain.encoder_rate import parameter_groups as continued_groups
from hardpatch.pretrain.schedule import Schedule
from hardpatch.pretrain.vital_signs import RunningMeans, unless
from hardpatch.randomness import patch_noise, seed_step
from hardpatch.train.bad_steps import BadSteps, running_statistics
from hardpatch.train.freeze import freeze
from hardpatch.train.optimizer import parameter_groups, set_weight_decay
from hardpatch.train.parallel import take_part, without_exchange
from hardpatch.train.sharding import WholeCopy, reshard, shard_copy
from hardpatch.train.state import TrainingState


class Step(NamedTuple):
    """Result of an optimizer step, on the device; that of the last micro-batch if there are several."""

    mined: MinedMask
    losses: Losses
    gradient_norm: Tensor | None
    """before clipping; None without clipping"""
    left_out: Tensor
    """bool: loss or gradient was NaN or infinite, and no weight was changed"""


class Learner:
    """Student, teacher and optimizer, one step at a time.

    Args:
        run: the configuration.
        model: the student.
        fabric: device and precision.
        total: optimizer steps of the run.
        target: network that computes the targets; None for the host's own.
        images: number in the data set, for the memory of difficulty.

    Raises:
        UserError: if it shall be compiled and this machine cannot.
    """

    def __init__(
        self,
        run: RunConfig,
        model: HPM,
        fabric: Fabric,
        total: int,
        target: Target | None = None,
        images: int = 0,
    ) -> None:
        self.run, self.fabric, self.total = run, fabric, total
        self.cuda_graphs = run.train.compile == "cuda_graphs"
        self.step = 0
        self.accumulation_steps = 1 if run.optim.accumulation_steps == "auto" else run.optim.accumulation_steps
        self.part = take_part(run.batch_size, self.accumulation_steps, crops=run.data.crops, prefix="")
        self.model = model.to(fabric.device)
        freeze(self.model.host.encoder, run.init.frozen_blocks)
        self.teacher = Teacher(self.model, run.fast.teacher_resolution) if needs_teacher(run) else None
        memory = DifficultyMemory(images, model.grid).to(fabric.device) if run.fast.remember else None
        for block in self.model.modules():
            if isinstance(block, Block):
                block.recompute = run.train.checkpoint_activations
        self.whole_model = WholeCopy(fabric, self.model)
        self.whole_teacher = None if self.teacher is None else WholeCopy(fabric, self.teacher)
        if run.train.compile != "no":
            compile_parts(self.model, self.teacher, fabric.device, cuda_graphs=self.cuda_graphs)
        self.student = fabric.setup_module(self.model)
        if self.teacher is not None:
            shard_copy(fabric, self.teacher.network, "forward_whole")
        groups = _parameter_groups(self.model, run)
        # The fused step unscales float16 gradients by itself, after they should have been clipped.
        fused = fabric.device.type != "mps" and run.train.precision != "fp16"
        self.adamw = torch.optim.AdamW(groups, lr=0.0, betas=run.optim.betas, fused=fused)
        self.optimizer = cast(Any, fabric.setup_optimizers(self.adamw))
        self.mining = HardPatchesMining(self.student, self.teacher, run.masking, target, memory)
        self.means = RunningMeans()
        running = running_statistics(self.model, None if self.teacher is None else self.teacher.network)
        self.bad_steps = BadSteps(fabric, self.optimizer, run.train, running)
        average = None if self.teacher is None else self.teacher.network
        self.state = TrainingState(
            *(fabric, self.model, self.adamw, self.bad_steps, average, memory), background=run.train.background_saving
        )

    def gather_weights(self) -> tuple[HPM, Teacher | None]:
        """Return student and teacher for measurements, whole where they are divided. All processes must take part."""
        return self.whole_model.gather(), None if self.whole_teacher is None else self.whole_teacher.gather()

    def release_weights(self) -> None:
        """Free the device's memory of what :meth:`gather_weights` gathered."""
        self.whole_model.release()
        if self.whole_teacher is not None:
            self.whole_teacher.release()

    def train_step(self, batch: Batch, schedule: Schedule, *, observe: bool = False) -> Step:
        """Take one optimizer step: the teacher masks, the student learns, the teacher follows the student.

        A step whose loss or gradient is NaN or infinite changes nothing in the student, and the teacher follows the
        unchanged student.

        With CUDA graphs, the result is valid until the next step begins.
        """
        if self.cuda_graphs:
            begin_step()
        self.bad_steps.begin()
        sums = self.means.sums
        mined, losses = self.compute_gradients(batch, schedule, self.accumulation_steps, observe=observe)
        if not schedule.encoder_factor:
            drop_gradients(self.model.host.encoder)
        for group in self.adamw.param_groups:
            factor = schedule.encoder_factor if group.get("encoder") else 1.0
            group["lr"] = schedule.lr * group.get("lr_scale", 1.0) * factor
        set_weight_decay(self.adamw, schedule.weight_decay)
        self.model.host.before_update(schedule.progress)
        norm, left_out = self.bad_steps.update(self.run.optim.clip)
        self.means.sums = unless(left_out, self.means.sums, sums)
        if self.teacher is not None:
            reshard(self.teacher.network)
            self.teacher.update(self.model, schedule.momentum)
        self.step += 1
        return Step(mined, losses, None if self.run.optim.clip is None else norm, left_out)

    def compute_gradients(
        self, batch: Batch, schedule: Schedule, accumulation_steps: int, *, observe: bool = False
    ) -> tuple[MinedMask, Losses]:
        """Compute the gradients of a batch. Returns mask and losses of the last micro-batch."""
        seed_step(self.run.seed, self.step)
        for number, micro_batch in enumerate(micro_batches(batch, accumulation_steps), 1):
            inputs = self.inputs(micro_batch)
            with without_exchange(self.fabric, self.student, number < accumulation_steps):
                with self.fabric.autocast():
                    mined, losses = self.mining(
                        inputs,
                        mask_ratio=schedule.mask_ratio,
                        alpha=schedule.alpha,
                        progress=schedule.progress,
                        observe=observe,
                    )
                self.fabric.backward(self.bad_steps.nan_unless_finite(losses.loss) / accumulation_steps)
            self.means.add(losses)
        return mined, losses

    def inputs(self, batch: Batch) -> Inputs:
        """Move a batch to the device and draw the random numbers of its masks."""
        device = self.fabric.device
        pixels = batch.images.to(device, non_blocking=True)
        samples = batch.indices.to(device, non_blocking=True)
        crops = torch.cat([samples + k * CROP_OFFSET for k in range(len(pixels) // len(samples))])
        noise = patch_noise(self.run.seed, self.step, crops, self.run.masking.noise_count + 1)
        order = torch.arange(len(pixels), device=device)
        if self.model.host.masked_share < 1.0:  # the first ones are masked: of the two crops of each image, either one
            images = order[: len(samples)]
            swapped = noise[: len(samples), -1] < 0.5
            shuffled = torch.cat([images + swapped * len(samples), images + ~swapped * len(samples)])
            pixels, noise, order = pixels[shuffled], noise[shuffled], shuffled.argsort()
        local = None
        if batch.local is not None:
            local = self.model.normalize(batch.local.to(device, non_blocking=True))
        boxes = None
        if self.mining.memory is not None:
            assert batch.boxes is not None
            assert batch.flipped is not None
            corners, flipped = (part.to(device, non_blocking=True) for part in (batch.boxes, batch.flipped))
            boxes = CropBox(samples % CROP_OFFSET, corners, flipped)
        # networks of other makers see 8 bits
        return Inputs(
            self.model.normalize(pixels), noise[:, :-1], to_bytes(pixels, self.model), Views(local, order), boxes
        )


def _parameter_groups(model: HPM, run: RunConfig) -> list[dict[str, Any]]:
    """Group parameters by weight decay, and of a model that started from existing weights by learning rate, too."""
    if run.init.weights is not None:
        return continued_groups(model, run)
    return parameter_groups(model, run.optim.weight_decay, [f"host.{name}" for name in model.host.no_weight_decay])


def micro_batches(batch: Batch, count: int) -> Iterator[Batch]:
    """Split a batch into equal parts, all crops of an image in the same one."""
    size = len(batch.indices) // count
    for k in range(count):
        part = slice(k * size, (k + 1) * size)
        images, local = (
            None if crops is None else crops.unflatten(0, (-1, len(batch.indices)))[:, part].flatten(0, 1)
            for crops in (batch.images, batch.local)
        )
        indices, labels, boxes, flipped = (
            None if values is None else values[part]
            for values in (batch.indices, batch.labels, batch.boxes, batch.flipped)
        )
        assert images is not None
        assert indices is not None
        assert labels is not None
        yield Batch(images, indices, labels, [], local, boxes, flipped)
