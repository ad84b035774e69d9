"""One optimizer step: the paper's Algorithm 1 around any host, on any device."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from hardpatch.data.batch import CROP_OFFSET, Batch
from hardpatch.methods.difficulty_memory import DifficultyMemory
from hardpatch.methods.hpm import HPM, Losses, MinedMask, mine_mask
from hardpatch.methods.ibot import IBOT, Views
from hardpatch.methods.targets import Target
from hardpatch.methods.teacher import Teacher
from hardpatch.models.block import Block
from hardpatch.pretrain.build import masking_of, needs_teacher
from hardpatch.pretrain.compile import begin_step, compile_parts
from hardpatch.pretrain.schedule import Schedule
from hardpatch.pretrain.sections import RunConfig
from hardpatch.pretrain.vital_signs import RunningMeans
from hardpatch.randomness import patch_noise
from hardpatch.train.optimizer import parameter_groups
from hardpatch.train.supervised import seed_step


class CropBox(NamedTuple):
    """What part of which image each of a piece's crops shows."""

    indices: Tensor
    """int64 ``[B]``, of the images"""
    boxes: Tensor
    """``[B, 4]``: top, left, height and width as shares of the image"""
    flipped: Tensor
    """bool ``[B]``"""


class MicroBatch(NamedTuple):
    """A batch, or a part of one, on the device."""

    pixels: Tensor
    """uint8 ``[B, C, H, W]``; two crops of each image, in random order, with host ibot"""
    images: Tensor
    """the same, normalized"""
    noise: Tensor
    """uniform in [0, 1), what the masks are drawn from"""
    local: Tensor | None
    """host ibot's small crops, normalized, view by view"""
    back: Tensor
    """puts the images in the order of the views"""
    place: CropBox | None
    """where the crops come from; for difficulty that is remembered"""


class Step(NamedTuple):
    """What one optimizer step leaves behind, on the device; of its last piece where a batch is computed in several."""

    problem: MinedMask
    losses: Losses
    noise: Tensor
    gradient_norm: Tensor | None


class Learner:
    """Student, teacher and optimizer, one step at a time.

    Args:
        run: the configuration.
        model: the student.
        fabric: device and precision.
        total: optimizer steps of the run.
        target: what is reconstructed where it is another network's; None is the host's own.
        images: in the data set; only for difficulty that is remembered.

    Raises:
        UserError: if it is to be compiled, and cannot be here.
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
        self.run, self.fabric, self.total, self.target = run, fabric, total, target
        self.cuda_graphs = run.train.compile == "cuda_graphs"
        self.step = 0
        self.pieces = 1 if run.optim.accumulation_steps == "auto" else run.optim.accumulation_steps
        self.model = model.to(fabric.device)
        self.teacher = Teacher(self.model, run.fast.teacher_resolution) if needs_teacher(run) else None
        self.memory = DifficultyMemory(images, model.grid).to(fabric.device) if run.fast.remember else None
        for block in self.model.modules():
            if isinstance(block, Block):
                block.recompute = run.train.checkpoint_activations
        self.ibot = isinstance(model.host, IBOT)
        groups = parameter_groups(self.model, run.optim.weight_decay)
        # The fused step unscales float16 gradients by itself, after they should have been clipped.
        fused = fabric.device.type != "mps" and run.train.precision != "fp16"
        self.adamw = torch.optim.AdamW(groups, lr=0.0, betas=run.optim.betas, fused=fused)
        self.student, self.optimizer = fabric.setup(self.model, self.adamw)
        self.grid, self.masking = model.grid, masking_of(run)
        self.means = RunningMeans(fabric.device)
        if run.train.compile != "no":
            compile_parts(self.model, self.teacher, fabric.device, cuda_graphs=self.cuda_graphs)

    def train_step(self, batch: Batch, now: Schedule, *, observe: bool = False) -> Step:
        """One optimizer step: the teacher sets a problem, the student solves it, the teacher follows the student.

        With CUDA graphs what is returned holds until the next step begins.
        """
        if self.cuda_graphs:
            begin_step()
        problem, losses, noise = self.gradients(batch, now, self.pieces, observe=observe)
        for group in self.adamw.param_groups:
            group["lr"] = now.lr
        self.adamw.param_groups[1]["weight_decay"] = now.weight_decay  # the first group is the one without
        if self.ibot and self.step < self.run.ibot.frozen_last_layer * self.total:
            self.model.get_parameter("host.head.last.weight").grad = None
        norm = self._clip()
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.teacher is not None:
            self.teacher.update(self.model, now.momentum)
        self.step += 1
        return Step(problem, losses, noise, norm)

    def gradients(
        self, batch: Batch, now: Schedule, pieces: int, *, observe: bool = False
    ) -> tuple[MinedMask, Losses, Tensor]:
        """What comes before the optimizer: leaves gradients; returns problem, losses and noise of the last piece."""
        # asked for where there is something to observe only, so that other hosts are compiled once
        observe = observe and hasattr(self.model.host, "token_use")
        seed_step(self.run.seed, self.step)
        for piece in map(self._on_device, split_batch(batch, pieces)):
            with self.fabric.autocast():
                problem = mine_mask(
                    self.teacher,
                    piece.images,
                    piece.noise,
                    mask_ratio=now.mask_ratio,
                    alpha=now.alpha if (self.step + 1) % self.run.fast.teacher_every == 0 else 0.0,
                    grid=self.grid,
                    masking=self.masking,
                    look=self.ibot or self.run.method.target == "teacher",
                    images_masked=max(1, round(len(piece.images) * self.run.ibot.masked_share)) if self.ibot else None,
                    known=self._recall(piece),
                )
                target, views = self._teach(piece, problem, now)
            losses = self.student(piece.images, problem.mask, target, views, observe=observe)
            self.fabric.backward(losses.loss / pieces)
            self.means.add(losses)
            self._remember(piece, problem, losses)
        return problem, losses, piece.noise

    def _on_device(self, batch: Batch) -> MicroBatch:
        """Move a batch, and draw the random numbers of its masks."""
        device = self.fabric.device
        pixels = batch.images.to(device, non_blocking=True)
        samples = batch.indices.to(device, non_blocking=True)
        crops = len(pixels) // len(samples)
        count = self.masking.noise_count(self.grid)
        of_crops = torch.cat([samples + k * CROP_OFFSET for k in range(crops)])
        noise = patch_noise(self.run.seed, self.step, of_crops, count + 1)
        back = torch.arange(len(pixels), device=device)
        if self.ibot:  # the first so many are masked, so that which crops these are must be left to chance
            order = noise[:, -1].argsort()
            pixels, noise, back = pixels[order], noise[order], order.argsort()
        local = None
        if batch.local is not None:
            local = self.model.normalize(batch.local.to(device, non_blocking=True))
        place = None
        if self.memory is not None:
            assert batch.boxes is not None
            assert batch.flipped is not None
            boxes, flipped = (part.to(device, non_blocking=True) for part in (batch.boxes, batch.flipped))
            place = CropBox(samples % CROP_OFFSET, boxes, flipped)
        return MicroBatch(pixels, self.model.normalize(pixels), noise[:, :-1], local, back, place)

    def _recall(self, piece: MicroBatch) -> Tensor | None:
        """The difficulty that is remembered; at random where nothing is, which is what the noise is for."""
        if self.memory is None or piece.place is None:
            return None
        known = self.memory.recall(*piece.place, self.grid)
        return known + 1e-3 * piece.noise[:, : known.shape[1]]

    def _remember(self, piece: MicroBatch, problem: MinedMask, losses: Losses) -> None:
        if self.memory is not None and piece.place is not None:
            assert losses.predicted is not None
            self.memory.write(*piece.place, problem.mask, losses.predicted, self.grid)

    def _teach(self, piece: MicroBatch, problem: MinedMask, now: Schedule) -> tuple[Tensor | None, Views | None]:
        """The target of the masked patches where it is not the host's own, and what iBOT's class tokens learn."""
        if self.ibot:
            assert self.teacher is not None
            assert problem.sight is not None
            classes, tokens = self.teacher.network.host.teach(
                problem.sight.latent, problem.mask, now.teacher_temperature, self.run.ibot.center_momentum
            )
            return tokens, Views(piece.local, classes, piece.back)
        if self.target is None:
            return None, None
        with torch.no_grad():
            return self.target(piece.pixels, problem.sight, problem.mask), None

    def _clip(self) -> Tensor | None:
        """Shorten the gradient to the norm allowed. A CPU can look first whether it is too long; asking a GPU would
        keep it waiting, so there it is always scaled, by 1 if need be."""
        limit = self.run.optim.clip
        if limit is None:
            return None
        if self.fabric.device.type != "cpu":
            return self.fabric.clip_gradients(self.student, self.optimizer, max_norm=limit, error_if_nonfinite=False)
        weights = [weight for group in self.adamw.param_groups for weight in group["params"] if weight.grad is not None]
        norm = get_total_norm([weight.grad for weight in weights])
        if not norm <= limit:
            clip_grads_with_norm_(weights, limit, norm)
        return norm


def split_batch(batch: Batch, pieces: int) -> Iterator[Batch]:
    """The batch in so many equal parts, all crops of an image in the same one."""
    size = len(batch.indices) // pieces
    for k in range(pieces):
        here = slice(k * size, (k + 1) * size)
        images, local = (
            None if crops is None else crops.unflatten(0, (-1, len(batch.indices)))[:, here].flatten(0, 1)
            for crops in (batch.images, batch.local)
        )
        indices, labels, boxes, flipped = (
            None if values is None else values[here]
            for values in (batch.indices, batch.labels, batch.boxes, batch.flipped)
        )
        assert images is not None
        assert indices is not None
        assert labels is not None
        yield Batch(images, indices, labels, [], local, boxes, flipped)
