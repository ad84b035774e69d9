"""Settings that the jobs of the training loop share: defaults, checks and overrides.

This module does not import torch, so that the command line starts quickly.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from hardpatch.choices import (
    DeviceName,
    DivergenceName,
    ExtendName,
    FreezeName,
    PrecisionName,
    ReportName,
    StrategyName,
    WeightsName,
)
from hardpatch.errors import UserError, did_you_mean, one_line
from hardpatch.ranges import (
    BAD_STEPS,
    BATCH,
    BELOW_ONE,
    COUNT,
    COUNT_OR_NONE,
    DECAY,
    DEVICES,
    FRACTION,
    FREEZE,
    MINUTES,
    NODES,
    NOT_NEGATIVE,
    PASSES,
    POSITIVE,
    SEED,
    SHARE,
    SIDE,
    STEPS,
    WIDTH,
    WORKERS,
    Range,
    check_ranges,
)
from hardpatch.train.loggers import check_installed
from hardpatch.yaml_text import check_value

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

FREE_TO_CHANGE = (
    *("accumulation_steps", "val_every", "log_every", "checkpoint_minutes", "checkpoint_steps"),
    *("keep_checkpoints", "keep_every", "background_saving"),
    *("workers", "max_bad_fraction", "device", "precision", "devices", "nodes", "strategy", "answer_minutes"),
    *("bad_steps", "on_divergence", "rollback_lr", "max_rollbacks", "lr_factor", "dumps", "extend", "logger"),
    "report",
)
"""Settings that a resumed run may change: apart from rounding, they do not affect what is learned, but for those of a
training that has diverged, such as ``lr_factor``."""


def setting(default: Any, help_text: str, numbers: Range | None = None) -> Any:
    """Return a dataclass field with a default value, a text for ``--help``, and the range of its numbers, if any."""
    return field(default=default, metadata={"help": help_text} | ({} if numbers is None else {"range": numbers}))


@dataclass(frozen=True)
class LoopSettings:
    """Settings of any job of the training loop."""

    epochs: float | None = setting(None, "passes over the training images; this or steps", PASSES)
    steps: int | None = setting(None, "optimizer steps, instead of epochs", STEPS)
    batch_size: int = setting(16, "images of an optimizer step", BATCH)
    accumulation_steps: int = setting(1, "micro-batches that a batch is split into, to save memory", BATCH)
    clip: float | None = setting(None, "largest norm of the gradient; null does not clip", POSITIVE)
    seed: int = setting(0, "seed of new weights, image order, augmentation and drop path", SEED)
    logger: str = setting(
        "tensorboard", "loggers beside metrics.jsonl, with commas: tensorboard, csv, wandb, mlflow; or none"
    )
    log_every: int = setting(50, "steps between lines of metrics", STEPS)
    checkpoint_minutes: float = setting(10.0, "minutes between checkpoints; the last step always has one", NOT_NEGATIVE)
    checkpoint_steps: int | None = setting(None, "steps between checkpoints, in addition to those by time", STEPS)
    keep_checkpoints: int = setting(2, "newest checkpoints to keep; older ones are removed", COUNT)
    keep_every: int | None = setting(None, "steps between checkpoints that are kept for good, too; null is none", STEPS)
    background_saving: bool = setting(
        True, "write checkpoints in a thread while the training goes on; takes the host's memory of a copy of the state"
    )
    workers: int | None = setting(None, "processes that decode images; auto is one fewer than the CPU cores", WORKERS)
    max_bad_fraction: float = setting(
        0.1, "largest share of files that cannot be decoded; they are listed and skipped", FRACTION
    )
    device: DeviceName = setting("auto", "accelerator")
    precision: PrecisionName = setting(
        "auto", "auto is bf16 on a GPU that supports it, else fp32; weights stay in fp32"
    )
    devices: Literal["auto"] | int = setting(
        1, "processes on this machine, one for each GPU; auto is all GPUs; torchrun and srun start their own", DEVICES
    )
    nodes: int = setting(1, "machines; each runs the command with MASTER_ADDR, MASTER_PORT and NODE_RANK set", NODES)
    strategy: StrategyName = setting(
        "ddp", "several processes: ddp has whole weights in each of them, fsdp2 divides them among the processes"
    )
    answer_minutes: float = setting(
        30.0, "minutes after which the run ends because one of several processes does not answer", MINUTES
    )

    bad_steps: int = setting(
        10,
        "steps of the last 100 whose NaN or infinite loss or gradient is skipped; one more is a divergence",
        BAD_STEPS,
    )
    on_divergence: DivergenceName = setting(
        "stop", "at a divergence: stop, or rollback to the last good checkpoint with a lower learning rate"
    )
    rollback_lr: float = setting(0.5, "factor of the learning rate at each rollback", SHARE)
    max_rollbacks: int = setting(3, "rollbacks after which a divergence ends the run", COUNT_OR_NONE)
    lr_factor: float = setting(1.0, "factor of the learning rate of all steps; a resumed run may change it", SHARE)
    extend: ExtendName = setting(
        "auto",
        "learning rate when --resume has another length: rewarm, hold and cool, or auto, which holds one that is high; "
        "no refuses it",
    )
    extensions: tuple[str, ...] = setting((), "changes of the length of this run, which --resume writes here")
    dumps: int = setting(3, "dumps of NaN or infinite steps that a run keeps for hardpatch replay", COUNT_OR_NONE)

    def total_steps(self, images: int) -> int:
        """Return the optimizer steps of a run on ``images`` training images, at least one."""
        if self.steps is not None:
            return self.steps
        return max(1, round((self.epochs or 0.0) * images / self.batch_size))


@dataclass(frozen=True)
class TrainingSettings(LoopSettings):
    """Settings of a training on labels, shared by all its verbs."""

    layer_decay: float | None = setting(
        0.75, "factor of the learning rate from each layer to the one below it; 1 for random weights", SHARE
    )
    weight_decay: float = setting(0.05, "weight decay of matrices; vectors and the class token have none", DECAY)
    drop_path: float = setting(0.1, "drop path rate of the last block; rises linearly from 0 in the first", BELOW_ONE)
    flip: float = setting(0.5, "probability of a horizontal flip", FRACTION)
    weights: WeightsName = setting(
        "auto", "weights of RUN to start from: student, teacher (its average), random; auto is student, of DINO teacher"
    )
    heads: int | None = setting(
        None, "attention heads of RUN, where weights of other libraries and a config.json beside do not say", WIDTH
    )
    trained_size: tuple[int, ...] | None = setting(
        None, "height and width in pixels of the images that RUN was trained on, likewise", SIDE
    )
    freeze: FreezeName | int = setting(
        0,
        "parts of the encoder that are not trained: a number of first blocks, with all before them, or encoder: all of "
        "it",
        FREEZE,
    )
    val_every: float | None = setting(None, "epochs between evaluations; the last step always has one", POSITIVE)
    report: ReportName = setting(
        "checks", "report.html in the folder of the run: written at evaluations and at the end, at the end, or no"
    )
    least_steps: int | None = setting(
        None, "steps at least where epochs say how long to train; null for as many as that", STEPS
    )

    @property
    def backbone(self) -> dict[str, Any]:
        """Arguments of :func:`~hardpatch.interchange.backbone.load_backbone`.

        Raises:
            UserError: if the size is no pair.
        """
        size = self.trained_size
        if size is not None and len(size) != 2:
            raise UserError(f"--trained_size: expected height and width, got {' '.join(map(str, size))}")
        return {
            "weights": self.weights,
            "seed": self.seed,
            "heads": self.heads,
            "image_size": size and (size[0], size[1]),
        }

    def total_steps(self, images: int) -> int:
        """Return the optimizer steps of a run on ``images`` training images."""
        return max(super().total_steps(images), 0 if self.steps is not None else self.least_steps or 0)

    def val_steps(self, images: int) -> float | None:
        """Return the optimizer steps between evaluations, not rounded; None for one at the end only."""
        return None if self.val_every is None else self.val_every * images / self.batch_size


Settings = TypeVar("Settings", bound=LoopSettings)


def changed(preset: Settings, values: Mapping[str, Any], arguments: Iterable[str] = ()) -> Settings:
    """Return a copy of ``preset`` with some values replaced.

    The length of a run has one unit: ``steps`` replaces the preset's ``epochs``, and the reverse; a preset's
    ``least_steps`` are for its own epochs only. Random weights replace the preset's layer decay by 1, because their
    lower layers have to learn as well. ``workers`` may be "auto".

    Args:
        preset: the settings to start from.
        values: plain values by name; lists stand for tuples.
        arguments: other names that the caller accepts, to suggest for a misspelled name.

    Raises:
        UserError: if a name is not a setting, or a value has the wrong type or is out of range.
    """
    names = {f.name for f in fields(preset)}
    unknown = next((name for name in values if name not in names), None)
    if unknown is not None:
        suggestion = did_you_mean(unknown, sorted({*names, *arguments}))
        raise UserError(f"--{unknown}: unknown setting{suggestion}")
    if values.get("steps") is not None and values.get("epochs") is not None:
        raise UserError("--steps: not allowed with --epochs; give one of them")
    base = to_dict(preset)
    if values.get("steps") or values.get("epochs"):
        base |= {"steps": None, "epochs": None, **({"least_steps": None} if "least_steps" in base else {})}
    if values.get("weights") == "random" and base.get("layer_decay") is not None:
        base["layer_decay"] = 1.0
    if values.get("workers") == "auto":
        values = {**values, "workers": None}
    check_value({f"--{name}": value for name, value in values.items()}, "")
    try:
        parsed = _parser(cast(Any, type(preset))).parse_object({**base, **to_plain(values)})
    except ArgumentError as error:
        raise UserError(f"--{one_line(error)}") from None
    settings = type(preset)(**parsed.as_dict())
    check_ranges(settings, "--")
    return settings


@cache
def _parser(kind: Any) -> ArgumentParser:
    """Build a parser that checks the types of settings of class ``kind``."""
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_class_arguments(kind)
    return parser


def check_loop(run: LoopSettings) -> None:
    """Refuse values out of range, of all settings of a verb, and settings of the loop that contradict each other.

    Raises:
        UserError: names the first such setting.
    """
    check_ranges(run, "--")
    check_installed(run.logger)
    if (run.epochs is None) == (run.steps is None):
        raise UserError("--epochs, --steps: expected one of the two; say how long to train")
    if run.batch_size % run.accumulation_steps:
        raise UserError(
            f"--accumulation_steps: expected a divisor of the batch size {run.batch_size}, got {run.accumulation_steps}"
        )


def too_short(run: TrainingSettings, images: int, least: int, preset: str) -> str | None:
    """Return a line about a training with so few steps that its result means little, else None.

    Args:
        run: the settings.
        images: number of images in the training set.
        least: steps from which on nothing is said.
        preset: words about the preset that has more.
    """
    steps = run.total_steps(images)
    if steps >= least:
        return None
    epochs = steps * run.batch_size / images
    return (
        f"{images:,} images and {epochs:.3g} epochs are {steps:,} steps of {run.batch_size}: with fewer than {least:,} "
        f"the result means little; {preset}"
    )


def to_dict(run: "DataclassInstance") -> dict[str, Any]:
    """Return plain values, as YAML and JSON hold them: lists for tuples."""
    return to_plain(asdict(run))


def to_plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with lists for tuples."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def to_yaml(values: Mapping[str, Any]) -> str:
    """Return plain values as YAML, one line for each, in their order."""
    # default_flow_style None keeps a list of numbers on one line
    return yaml.safe_dump(dict(values), sort_keys=False, default_flow_style=None, width=1000)


def expect(run: "DataclassInstance", name: str, expected: str, holds: bool) -> None:
    """Raise an error about the setting ``name`` unless the condition ``holds``.

    Raises:
        UserError: says what was expected and what the value is.
    """
    if not holds:
        value = getattr(run, name)
        text = " ".join(map(str, value)) if isinstance(value, tuple) else value
        raise UserError(f"--{name}: expected {expected}, got {text}")
