"""How a network is fine-tuned: the settings and their presets.

Nothing here imports torch, so that the command line answers at once.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Literal

from jsonargparse import ArgumentError, ArgumentParser

from hardpatch.errors import UserError, did_you_mean
from hardpatch.pretrain.config import explain


@dataclass(frozen=True)
class FinetuneRun:
    """Fine-tuning under labels; the values that stand here are the paper's for ViT-B on ImageNet-1K (Table S2)."""

    run: str
    """What to start from: run folder, weights file, reference checkpoint or timm's weights."""
    train: str
    """Labeled images to learn from: one folder a class, or Parquet files with labels."""
    val: str
    """Labeled images to be judged on."""
    weights: Literal["student", "teacher"] = "student"
    """Whose of the run."""
    from_scratch: bool = False
    """Start from random weights instead, in a network of the same shape."""
    image_size: int | None = None
    """Side of the crops in pixels; null is that of pre-training."""
    epochs: float = 100.0
    """Passes over the training images."""
    batch_size: int = 1024
    """Images of an optimizer step."""
    accumulation_steps: int = 1
    """Parts in which a batch is computed, to save memory."""
    base_lr: float = 5e-4
    """Peak learning rate for a batch of 256; it is scaled with the batch."""
    min_lr: float = 1e-6
    """Learning rate at the end."""
    warmup_epochs: float = 5.0
    """Epochs in which the learning rate rises from 0."""
    weight_decay: float = 0.05
    """Of matrices; vectors, positions and the class token have none."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of AdamW."""
    layer_decay: float | None = None
    """A layer learns with this share of the rate of the one above it; null is 0.8, and 1 with from_scratch: random
    weights have nothing to keep, and must learn as fast below as above."""
    clip: float | None = None
    """Largest norm of the gradient; null does not clip."""
    drop_path: float = 0.1
    """Probability of leaving a branch of the last block out, linearly less in those before."""
    smoothing: float = 0.1
    """Label smoothing: the share of the target that is spread over all classes."""
    mixup: float = 0.8
    """Alpha of mixup, 0 is off; where both are on each batch has one of the two."""
    cutmix: float = 1.0
    """Alpha of CutMix, 0 is off."""
    mix_prob: float = 1.0
    """Probability with which a batch is mixed."""
    randaugment: float = 9.0
    """Mean magnitude of RandAugment, 0 to 10, where 0 is off; two operations an image, each with probability 1/2."""
    randaugment_std: float = 0.5
    """Standard deviation of its magnitude."""
    erase: float = 0.25
    """Probability of random erasing: a rectangle of noise."""
    crop_scale: tuple[float, float] = (0.08, 1.0)
    """Random resized crop: smallest and largest share of the image's area."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Random resized crop: narrowest and widest aspect ratio."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    ema: float | None = None
    """Decay of a moving average of the weights, which is then what is judged; null has none."""
    seed: int = 0
    """Of the head, the order of the images and all augmentation; of all weights with from_scratch."""
    eval_epochs: float = 1.0
    """Epochs between two measurements on the validation images; there is always one at the end."""
    workers: Literal["auto"] | int = "auto"
    """Processes that decode images; 0 decodes in the training process."""
    max_bad_fraction: float = 0.1
    """Files that cannot be decoded are named and skipped; past this share of a set the run stops."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Accelerator."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Auto is bf16 on a GPU that has it, else fp32. Weights and loss stay in float32."""
    log_every: int = 50
    """Steps between two lines of metrics."""
    checkpoint_minutes: float = 10.0
    """Minutes between two checkpoints; there is one at the end too, and when the run is interrupted."""
    checkpoint_steps: int | None = None
    """Steps between two checkpoints, beside the minutes."""

    def __post_init__(self) -> None:
        if self.layer_decay is None:
            object.__setattr__(self, "layer_decay", 1.0 if self.from_scratch else 0.8)
        _check(self)


BEFORE = ("run", "train", "val", "from_scratch")
"""What the command line takes before the other settings."""

FREE_TO_CHANGE = (
    *("workers", "max_bad_fraction", "device", "precision", "log_every", "checkpoint_minutes", "checkpoint_steps"),
)
"""Settings that a run may change when it goes on: they do not decide what is learned."""

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {},
    "small": {
        "batch_size": 128,
        "base_lr": 1e-3,
        "warmup_epochs": 5.0,
        "randaugment": 6.0,
        "mixup": 0.2,
        "cutmix": 0.5,
        "mix_prob": 0.5,
        "erase": 0.0,
        "crop_scale": (0.2, 1.0),
        "eval_epochs": 5.0,
    },
    "tiny": {
        "epochs": 200.0,
        "batch_size": 64,
        "base_lr": 2e-3,
        "warmup_epochs": 10.0,
        "randaugment": 4.0,
        "mixup": 0.0,
        "cutmix": 0.5,
        "mix_prob": 0.5,
        "erase": 0.0,
        "crop_scale": (0.35, 1.0),
        "eval_epochs": 10.0,
    },
}
"""Settings in which a preset differs from the paper's: ``small`` for some 10,000 to 100,000 small images, ``tiny`` for
a few thousand. Batches of 1,024 leave such sets too few steps, and small networks are overtaxed by the paper's
augmentation. The two are this project's choice, not the paper's."""


def configure(preset: str = "paper", **values: Any) -> FinetuneRun:
    """A checked run from a preset and the settings that differ from it; ``run``, ``train`` and ``val`` are needed.

    Raises:
        UserError: one line that names what is wrong.
    """
    return build({**_preset(preset), **values})


def build(values: Mapping[str, Any], arguments: Sequence[str] = (), preset: str | None = None) -> FinetuneRun:
    """A checked run from plain ``values``, changed by a preset, then by command-line ``arguments``.

    :data:`BEFORE` are expected among the values.

    Raises:
        UserError: one line that names the setting, what was expected and what came, with a suggestion for a
            misspelled name.
    """
    values = {**values, **(_preset(preset) if preset is not None else {})}
    given = [argument.split("=")[0] for argument in arguments if argument.startswith("--")]
    known = [field.name for field in fields(FinetuneRun)]
    for option in [*(f"--{name}" for name in values), *given]:
        if option.removeprefix("--") not in known:
            suggestion = did_you_mean(option, [f"--{name}" for name in known])
            raise UserError(f"{option}: unknown argument{suggestion or '; see hardpatch finetune --help'}")
    missing = [name for name in ("run", "train", "val") if values.get(name) is None]
    if missing:
        what = {"run": "RUN: expected what to start from", "train": "--train: expected labeled images to learn from"}
        raise UserError(f"{what.get(missing[0], '--val: expected labeled images to be judged on')}, got nothing")
    parser = _parser()
    first = {name: value for name, value in values.items() if name in BEFORE}
    others = {name: value for name, value in values.items() if name not in BEFORE}
    try:
        namespace = parser.parse_args(list(arguments), namespace=parser.parse_object(others))
    except ArgumentError as error:
        if "nrecognized arguments" in str(error):  # options are checked: it is a word too many
            raise UserError(
                f"unexpected argument{str(error).partition(':')[2]}; see hardpatch finetune --help"
            ) from None
        raise UserError(f"--{explain(error).removeprefix('argument ').removeprefix('--')}") from None
    return FinetuneRun(**first, **namespace.as_dict())


def settings_help() -> str:
    """What ``--help`` says of the settings."""
    return _parser().format_help()


@cache
def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="hardpatch", exit_on_error=False, add_help=False, usage=argparse.SUPPRESS)
    parser.add_class_arguments(FinetuneRun, skip=set(BEFORE))
    return parser


def _preset(name: str) -> dict[str, Any]:
    if name not in PRESETS:
        raise UserError(f"--preset: expected one of {', '.join(PRESETS)}, got {name!r}{did_you_mean(name, [*PRESETS])}")
    return PRESETS[name]


def _check(run: FinetuneRun) -> None:
    """Refuse values that cannot be meant; what depends on the network or the data is checked where they are known."""
    for name in ("mix_prob", "erase", "flip", "max_bad_fraction"):
        _expect(run, name, "a probability in [0, 1]", lambda value: 0 <= value <= 1)
    for name in ("drop_path", "smoothing"):
        _expect(run, name, "a number in [0, 1)", lambda value: 0 <= value < 1)
    for name in ("epochs", "base_lr", "layer_decay", "eval_epochs", "checkpoint_minutes"):
        _expect(run, name, "a number above 0", lambda value: value > 0)
    for name in ("batch_size", "accumulation_steps", "log_every"):
        _expect(run, name, "a whole number from 1", lambda value: value >= 1)
    for name in ("min_lr", "warmup_epochs", "weight_decay", "mixup", "cutmix", "randaugment_std", "seed"):
        _expect(run, name, "0 or more", lambda value: value >= 0)
    _expect(run, "randaugment", "a magnitude in [0, 10]", lambda value: 0 <= value <= 10)
    _expect(run, "betas", "two numbers in [0, 1)", lambda pair: all(0 <= value < 1 for value in pair))
    _expect(run, "crop_scale", "shares with 0 < smallest <= largest <= 1", lambda pair: 0 < pair[0] <= pair[1] <= 1)
    _expect(run, "crop_ratio", "ratios with 0 < narrowest <= widest", lambda pair: 0 < pair[0] <= pair[1])
    if run.image_size is not None:
        _expect(run, "image_size", "pixels, 1 or more", lambda value: value >= 1)
    if run.ema is not None:
        _expect(run, "ema", "a number in (0, 1)", lambda value: 0 < value < 1)
    if run.clip is not None:
        _expect(run, "clip", "a number above 0", lambda value: value > 0)
    if run.checkpoint_steps is not None:
        _expect(run, "checkpoint_steps", "a whole number from 1", lambda value: value >= 1)
    if run.batch_size % run.accumulation_steps:
        raise UserError(
            f"--accumulation_steps: expected a divisor of the batch size {run.batch_size}, got {run.accumulation_steps}"
        )
    if (run.mixup or run.cutmix) and run.batch_size % 2:
        raise UserError(
            f"--batch_size: mixup and CutMix pair the images of a batch, expected an even number, got "
            f"{run.batch_size}; or give --mixup 0 --cutmix 0"
        )
    if run.warmup_epochs > run.epochs:
        raise UserError(
            f"--warmup_epochs: expected at most the {run.epochs:g} epochs of --epochs, got {run.warmup_epochs:g}"
        )


def _expect(run: FinetuneRun, name: str, expected: str, holds: Any) -> None:
    value = getattr(run, name)
    if not holds(value):
        raise UserError(f"--{name}: expected {expected}, got {value}")
