"""Settings of a pre-training run that do not say what is learned: device, log, checkpoints, divergence.

This module does not import torch, so that ``--help`` is fast.
"""

from dataclasses import dataclass
from typing import Literal

from hardpatch.choices import DeviceName, DivergenceName, ExtendName, PrecisionName, ReportName, StrategyName
from hardpatch.ranges import (
    BAD_STEPS,
    COUNT,
    COUNT_OR_NONE,
    DEVICES,
    MINUTES,
    NODES,
    NOT_NEGATIVE,
    SHARE,
    STEPS,
    ranged,
)


@dataclass(frozen=True)
class TrainConfig:
    """Device, precision, log and checkpoints."""

    device: DeviceName = "auto"
    """Device to train on."""
    precision: PrecisionName = "auto"
    """Precision of the forward pass: auto is bf16 on a GPU that has it, else fp32; weights and losses stay fp32."""
    compile: Literal["no", "yes", "cuda_graphs"] = "no"
    """Compile student and teacher with torch.compile; cuda_graphs also records CUDA graphs."""
    checkpoint_activations: bool = False
    """Recompute the student's activations in the backward pass: less memory, more time."""
    logger: str = "tensorboard"
    """Loggers beside metrics.jsonl, with commas: tensorboard, csv, wandb, mlflow; or none."""
    report: ReportName = "checks"
    """Times at which report.html is written: checks is at evaluations and at the end, end only then, no is never."""
    pictures: int = ranged(8, COUNT_OR_NONE)
    """Training images whose reconstruction and difficulty pictures/ shows, beside the curves; 0 draws no pictures."""
    log_every: int = ranged(50, STEPS)
    """Steps between two lines of metrics."""
    checkpoint_minutes: float = ranged(5.0, NOT_NEGATIVE)
    """Minutes between two checkpoints; the end and an interruption also write one."""
    checkpoint_steps: int | None = ranged(None, STEPS)
    """Steps between two checkpoints, in addition to the minutes; null is none."""
    keep_checkpoints: int = ranged(2, COUNT)
    """Number of newest checkpoints to keep."""
    keep_every: int | None = ranged(None, STEPS)
    """Steps between checkpoints that are kept for good, in addition to the newest; null is none."""
    background_saving: bool = True
    """Write checkpoints in a thread while the training goes on; takes the host's memory of a copy of the state."""
    devices: int | Literal["auto"] = ranged(1, DEVICES)
    """Processes on this machine, one for each GPU; auto is all GPUs. torchrun and srun start their own."""
    nodes: int = ranged(1, NODES)
    """Machines; each runs the command, with MASTER_ADDR, MASTER_PORT and NODE_RANK in its environment."""
    strategy: StrategyName = "ddp"
    """Several processes: ddp has whole weights in each of them, fsdp2 divides them among the processes."""
    answer_minutes: float = ranged(30.0, MINUTES)
    """Minutes after which the run ends because one of several processes does not answer."""
    bad_steps: int = ranged(10, BAD_STEPS)
    """Steps of the last 100 whose NaN or infinite loss or gradient is skipped; one more is a divergence."""
    on_divergence: DivergenceName = "stop"
    """Response to a divergence: stop, or rollback to the last good checkpoint with a lower learning rate."""
    rollback_lr: float = ranged(0.5, SHARE)
    """Factor of the learning rate at each rollback."""
    max_rollbacks: int = ranged(3, COUNT_OR_NONE)
    """Rollbacks after which a divergence ends the run."""
    lr_factor: float = ranged(1.0, SHARE)
    """Factor of the learning rate of all steps; a resumed run may change it."""
    extend: ExtendName = "auto"
    """Learning rate when --resume has another length: rewarm, hold and cool, or auto, which holds one that is high; no
    refuses it."""
    dumps: int = ranged(3, COUNT_OR_NONE)
    """Dumps of NaN or infinite steps that a run keeps for hardpatch replay."""
