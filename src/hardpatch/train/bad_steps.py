"""Steps whose loss or gradient is NaN or infinite: skipped on the device, and counted on the host.

The device decides, so that no step waits for it: a fused optimizer takes the decision as a tensor (``found_inf``, as
the loss scaler of float16 gives it). The host reads the decision when it has arrived, a step or two later. The norm of
the gradient is that of all processes, so they all decide the same.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import clip_grads_with_norm_

from hardpatch.choices import DivergenceName
from hardpatch.processes import average
from hardpatch.train.sharding import whole

WINDOW = 100
"""Steps among which bad ones are counted."""
HELD = 4
"""Batches that are held until it is known whether their step was bad."""


class DivergenceSettings(Protocol):
    """Settings of the loop in :class:`~hardpatch.train.settings.LoopSettings` and in section ``train``."""

    @property
    def logger(self) -> str:
        """Loggers of the metrics."""

    @property
    def bad_steps(self) -> int:
        """Bad steps of the last :data:`WINDOW` that are skipped."""

    @property
    def on_divergence(self) -> DivergenceName:
        """Response to one more."""

    @property
    def rollback_lr(self) -> float:
        """Factor of the learning rate at each rollback."""

    @property
    def max_rollbacks(self) -> int:
        """Rollbacks after which a divergence ends the run."""

    @property
    def lr_factor(self) -> float:
        """Factor of the learning rate of all steps."""

    @property
    def dumps(self) -> int:
        """Dumps that a run keeps."""


@dataclass
class WatchedStep:
    """A step of which the host does not know yet, or which it found to be bad."""

    step: int
    """number of the optimizer step, counted from 1"""
    batch: Any
    """what the step was trained on; None if it is not held anymore"""
    bad: Tensor
    """bool scalar, on the host once :attr:`arrived`"""
    own: Tensor
    """bool scalar on the device: the loss of this process was not finite"""
    weights: list[Tensor]
    """parameters that had a gradient"""
    norms: Tensor
    """norms of their gradients, ``[P]``, on the device"""
    updates: int = 0
    """steps with an update before it"""
    arrived: Any = None
    """event of the device after which ``bad`` can be read; None if it can be read at once, or by waiting"""


class BadSteps:
    """Skips the optimizer's step where the gradient is NaN or infinite, and counts such steps.

    A job calls :meth:`begin` before the forward pass, :meth:`nan_unless_finite` on each loss, and :meth:`update` in
    place of the optimizer's step. The loop calls the rest.

    Args:
        fabric: device and precision.
        optimizer: of Fabric.
        settings: limits.
        running: tensors that a forward pass changes, such as those of :func:`running_statistics` and sums of losses;
            a bad step leaves them as they were.
    """

    def __init__(
        self, fabric: Fabric, optimizer: Any, settings: DivergenceSettings, running: Iterable[Tensor] = ()
    ) -> None:
        self.settings, self.rollbacks, self.skipped = settings, 0, 0
        self.window: list[int] = []
        """steps that were skipped, among the last :data:`WINDOW`"""
        self.rolled_back_to: int | None = None
        """step of the checkpoint to which the run went back last"""
        self.found: list[WatchedStep] = []
        """bad steps that the loop has not reported yet; the first one has its batch"""
        self.updates = 0
        """steps with an update that the host knows of"""
        self._fabric, self._optimizer, self._running = fabric, optimizer, list(running)
        self._kept: list[Tensor] = []
        self._watched: deque[WatchedStep] = deque()
        self._left_out = torch.zeros((), device=fabric.device)
        self._own = torch.zeros((), dtype=torch.bool, device=fabric.device)

    @property
    def lr_factor(self) -> float:
        """Factor of the learning rate of the next step."""
        return self.settings.lr_factor * self.settings.rollback_lr**self.rollbacks

    def begin(self) -> None:
        """Keep the running tensors as they are before a step."""
        self._kept = [value.clone() for value in self._running]
        self._own = torch.zeros_like(self._own)

    def nan_unless_finite(self, loss: Tensor) -> Tensor:
        """Return a finite loss as it is, else NaN.

        Its whole gradient is then NaN, too, in all processes: that of a square can be finite where the square is not.
        """
        value = loss.detach()
        self._own = self._own | ~value.isfinite()
        return loss * (1.0 + 0.0 * value)

    @torch.no_grad()
    def clip(self, limit: float | None) -> Tensor:
        """Clip the norm of the gradient.

        On a CPU the gradient is scaled only if its norm is too large. On a GPU that test would need a synchronization,
        so the gradient is always scaled, by 1 if it is short enough.

        Args:
            limit: the largest norm; None does not clip.

        Returns:
            The norm before clipping, a scalar on the device.
        """
        inner = self._optimizer.optimizer
        if limit is not None:
            self._fabric.strategy.precision.unscale_gradients(inner)
        weights = [weight for group in inner.param_groups for weight in group["params"] if weight.grad is not None]
        norms = torch.stack(torch._foreach_norm([weight.grad for weight in weights]))
        norm = whole(torch.linalg.vector_norm(norms))
        self._gradients = weights, norms
        if limit is not None and not (norm.device.type == "cpu" and norm <= limit):
            clip_grads_with_norm_(weights, limit, norm)
        return norm

    @torch.no_grad()
    def update(self, limit: float | None) -> tuple[Tensor, Tensor]:
        """Clip the gradient, take the optimizer's step unless the gradient is NaN or infinite, and drop the gradient.

        Args:
            limit: largest norm of the gradient; None does not clip.

        Returns:
            The norm before clipping, and whether the step was left out: scalars on the device.
        """
        norm = self.clip(limit)
        left_out = bad = ~norm.isfinite()
        scaler = getattr(self._fabric.strategy.precision, "scaler", None)
        if scaler is not None:  # it skips the step itself, as it does in search of its scale: that alone is not bad
            bad = bad & (scaler._get_scale_async() < 1.0)
            self._optimizer.step()
        elif self._optimizer.optimizer.defaults.get("fused"):
            self._optimizer.optimizer.found_inf = bad.to(torch.float32)
            self._optimizer.step()
        elif not bad:  # not fused on a CPU, where reading it costs nothing; on MPS it waits
            self._optimizer.step()
        self._optimizer.zero_grad()
        for value, kept in zip(self._running, self._kept, strict=True):
            value.copy_(torch.where(left_out, kept, value))
        self._left_out += left_out
        self._bad = bad
        return norm, left_out

    def read_left_out(self) -> int:
        """Return the number of steps without an update since the last call. Waits for the device."""
        count = int(self._left_out)
        self._left_out.zero_()
        return count

    def watch(self, step: int, batch: Any) -> None:
        """Note what the last :meth:`update` belongs to, without waiting for the device."""
        watched = WatchedStep(step, batch, self._bad, self._own, *self._gradients)
        if self._bad.device.type == "cuda":
            watched.bad = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(self._bad, non_blocking=True)
            watched.arrived = torch.cuda.Event()
            watched.arrived.record()
        self._watched.append(watched)
        if len(self._watched) > HELD:
            self._watched[-HELD - 1].batch = None

    def poll(self, *, wait: bool = False) -> bool:
        """Look at the steps whose result has arrived, at all of them if it shall ``wait`` for the device.

        Returns:
            Whether there are bad steps to report, see :attr:`found`.
        """
        while self._watched and (wait or _has_arrived(self._watched[0])):
            watched = self._watched.popleft()
            if watched.arrived is not None:
                watched.arrived.synchronize()
            if not watched.bad:
                self.updates += 1
                continue
            watched.updates = self.updates
            if self.found:
                watched.batch = None
            self.found.append(watched)
        return bool(self.found)

    @property
    def total(self) -> int:
        """Steps that were skipped since the start of the run, those included that are not counted yet."""
        return self.skipped + len(self.found)

    def postpones(self, step: int, *, last: bool) -> bool:
        """Return whether a checkpoint after ``step`` waits, because the step was skipped; the ``last`` never waits.

        Nothing is new then, and weights that may have diverged should not push out good ones.
        """
        return step in self.window and not last

    def count(self) -> list[WatchedStep]:
        """Count the bad steps that were found into the window, and return them."""
        found, self.found = self.found, []
        if found:
            self.skipped += len(found)
            self.window += [watched.step for watched in found]
        return found

    def too_many(self, step: int) -> bool:
        """Return whether there are more bad steps than are skipped, at the end of ``step``."""
        self.window = [bad for bad in self.window if bad > step - WINDOW]
        return len(self.window) > self.settings.bad_steps

    def forget(self) -> None:
        """Forget the steps that are undone by going back to a checkpoint."""
        self.found, self.window = [], []
        self._watched.clear()

    def state(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        return {
            "skipped": self.skipped,
            "window": self.window,
            "rollbacks": self.rollbacks,
            "rolled_back_to": self.rolled_back_to,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the values of :meth:`state`; an earlier version saved none."""
        self.skipped, self.rollbacks = state.get("skipped", 0), state.get("rollbacks", 0)
        self.window, self.rolled_back_to = list(state.get("window", ())), state.get("rolled_back_to")


def means_of(sums: Tensor, steps: int, bad_steps: BadSteps) -> list[float]:
    """Return the means over steps and processes of sums over the ``steps`` since the last call, and set them to 0.

    Steps without an update are not in them; if there are no others, the list is empty. Waits for the device.
    """
    count = steps - bad_steps.read_left_out()
    means: list[float] = average(sums / count).tolist() if count else []
    sums.zero_()
    return means


def _has_arrived(watched: WatchedStep) -> bool:
    return watched.bad.device.type == "cpu" and (watched.arrived is None or watched.arrived.query())


def running_statistics(*modules: nn.Module | None) -> Iterator[Tensor]:
    """Yield the buffers that a forward pass in training changes.

    These are the statistics of batch norm, and what a module names in ``running_buffers``.
    """
    for module in modules:
        for part in () if module is None else module.modules():
            if isinstance(part, _BatchNorm) and part.track_running_stats:
                yield from part.buffers(recurse=False)
            yield from (part.get_buffer(name) for name in getattr(part, "running_buffers", ()))
