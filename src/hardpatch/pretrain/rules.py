"""Rules that choose the settings of a training from its set, its machine and its time.

How they were found, and what did not matter: docs/plan.md. No rule looks at names or at what the images show.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from hardpatch.choices import SIZES
from hardpatch.configuration import config
from hardpatch.configuration.sections import RunConfig
from hardpatch.pretrain.set_and_machine import Machine, SetFacts


class Size(NamedTuple):
    """A model, its images, and how many images it must see to be worth more than the next smaller one."""

    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_depth: int
    side: int
    """largest side of the images in pixels"""
    least_images: int


LADDER = (
    Size(128, 4, 4, 64, 2, 64, 0),
    Size(192, 6, 6, 96, 2, 64, 1_000_000),
    Size(256, 8, 8, 128, 2, 96, 4_000_000),
    Size(384, 12, 6, 192, 4, 128, 20_000_000),
    Size(768, 12, 12, 512, 8, 224, 100_000_000),
)
"""From small to large."""

GRIDS = {224: (14,), 0: (8, 7, 9, 10)}
"""Patches along a side, by the least side of the images; the first that leaves at most LOST of it unused is taken."""
LOST = 0.05
BATCHES = (32, 64, 128, 256, 512, 1024)
STEPS = 10_000
"""Steps that a training should have; the batch is the largest of BATCHES that leaves so many."""
LR = 1e-3
"""Peak learning rate for a batch of LR_BATCH and a width of LR_WIDTH; it grows with the root of batch over width."""
LR_BATCH, LR_WIDTH = 64, 128
EPOCHS_TO_REMEMBER = 5
"""Epochs from which on mining by what earlier epochs remember replaces the teacher's look at the whole image."""
MAX_EPOCHS = 4000
TRIED_WIDTH, TRIED_IMAGES = 128, 160_000
"""Widest model, and most images seen, of the trainings on a CPU that the rules were tried with (docs/plan.md)."""
MEMORY_SHARE = 0.4
"""Fraction of the free memory that decoded images may take."""
HELD_OUT, LEAST_HELD_OUT, MOST_HELD_OUT = 0.1, 20, 512
"""Fraction of the images that are kept out of the training, the least number that tells anything, and the most."""
MEASURED = 2000
"""Images, at most, on which mean and deviation are computed."""
PATIENCE = 30.0
"""Seconds that this may take."""
WAITING = 0.25
"""Fraction of the time spent waiting for images from which on the plan advises smaller copies of them."""
HOURS = {"cpu": 2.0, "mps": 4.0, "cuda": 8.0}
"""Hours of a training where none are set."""


@dataclass
class Draft:
    """Settings by dotted name: those of the user, which stay, and those that the rules choose beside them."""

    fixed: Mapping[str, Any]
    chosen: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    """by topic"""
    of_weights: Collection[str] = ()
    """names among the fixed settings that are not the user's but those of the weights that training starts from"""

    def choose(self, topic: str, values: Mapping[str, Any], reason: str) -> None:
        """Take those of `values` that the user did not set, and note what they are and rest on."""
        taken = {name: value for name, value in values.items() if name not in self.fixed}
        kept = {name: self.fixed[name] for name in values if name in self.fixed}
        self.chosen |= taken
        said = reason if taken or not values else ""
        whose: dict[str, list[str]] = {}
        for name, value in kept.items():
            whose.setdefault("of --init" if name in self.of_weights else "yours", []).append(f"{name} {value}")
        parts = (said, *(f"{owner}: {', '.join(settings)}" for owner, settings in whose.items()))
        self.reasons[topic] = "; ".join(part for part in parts if part)

    def value(self, name: str, default: Any = None) -> Any:
        """Return a setting, the user's before that of the rules."""
        return self.fixed.get(name, self.chosen.get(name, default))

    @property
    def length_fixed(self) -> bool:
        """True if the user set the length."""
        return any(self.fixed.get(name) is not None for name in ("steps", "epochs"))

    def build(self) -> RunConfig:
        """Return the configuration of these settings.

        Raises:
            UserError: if they do not go together.
        """
        return config.build(nested({**self.chosen, **self.fixed}))


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings by section: ``{"optim": {"lr": 1e-3}}`` for ``{"optim.lr": 1e-3}``."""
    return config.merged({}, settings)


def sizes(fixed: Mapping[str, Any]) -> tuple[Size, ...]:
    """Return the models to choose from: one, if the user set its width or size."""
    width = fixed.get("model.width")
    if width is None and "model.size" in fixed:
        width = SIZES[fixed["model.size"]]["width"]
    if width is None:
        return LADDER
    nearest = min(LADDER, key=lambda size: abs(math.log(size.width / width)))
    return (nearest._replace(width=width, least_images=0),)


def patches(limit: int) -> tuple[int, int]:
    """Return (side of the image, side of a patch) in pixels for images of at least ``limit`` pixels.

    About 8 x 8 patches, 14 x 14 from 224 px on, so that little of the image is lost and nothing is enlarged.
    """
    grids = next(grids for side, grids in GRIDS.items() if limit >= side)
    for grid in grids:
        if limit // grid * grid >= (1 - LOST) * limit:
            return limit // grid * grid, limit // grid
    grid = max(grids, key=lambda grid: limit // grid * grid)
    return max(1, limit // grid) * grid, max(1, limit // grid)


def choose_size(draft: Draft, size: Size, facts: SetFacts) -> None:
    """Choose images, patches, encoder and decoders for one of :func:`sizes`."""
    fixed = draft.fixed
    if "data.image_size" in fixed or "model.patch_size" in fixed:
        side, patch = _beside(fixed, size, facts)
    else:
        side, patch = patches(min(size.side, facts.side))
    why = (
        f"the set has {facts.side} px" if facts.side <= size.side else f"at most {size.side} px for a model this small"
    )
    draft.choose("images", {"data.image_size": side, "model.patch_size": patch}, why)
    shape: dict[str, Any] = {"model.width": size.width, "model.depth": size.depth, "model.heads": size.heads}
    if "model.size" in fixed:
        shape = {}
    if "model.width" in fixed and "model.heads" not in fixed:
        shape["model.heads"] = next(k for k in range(max(1, size.width // 32), 0, -1) if size.width % k == 0)
    draft.choose("model", shape, "")
    width = fixed.get("model.decoder_width", size.decoder_width)
    heads = next(k for k in range(max(1, width // 16), 0, -1) if width % k == 0)
    decoder = {
        "model.decoder_width": size.decoder_width,
        "model.decoder_depth": size.decoder_depth,
        "model.decoder_heads": heads,
    }
    draft.choose("decoders", decoder, "half as wide as the encoder; of one block, difficulty may come out upside down")


def _beside(fixed: Mapping[str, Any], size: Size, facts: SetFacts) -> tuple[Any, int]:
    """Return (side of the image, of a patch) where the user set one of the two."""
    if "data.image_size" not in fixed:
        patch = fixed["model.patch_size"]
        return max(2, min(size.side, facts.side) // patch) * patch, patch
    side = fixed["data.image_size"]
    sides = [side] if isinstance(side, int) else list(side)
    if "model.patch_size" in fixed:
        return side, fixed["model.patch_size"]
    wanted = min(sides) / (14 if min(sides) >= 224 else 8)
    divisors = [p for p in range(1, min(sides) + 1) if all(s % p == 0 for s in sides)]
    return side, min(divisors, key=lambda p: abs(math.log(p / wanted)))


def choose_loading(draft: Draft, facts: SetFacts, machine: Machine) -> None:
    """Choose where decoded images are kept."""
    need = facts.images * facts.pixels * facts.channels * {"uint8": 1, "uint16": 2, "int16": 2}.get(facts.dtype, 4)
    fits = machine.memory is not None and need <= MEMORY_SHARE * machine.memory
    if fits:
        values: dict[str, Any] = {"data.in_memory": "host"}
        reason = f"decoded once into memory, {_bytes(need)}"
        if machine.device == "cpu":
            values["data.workers"] = 0
    else:
        values, reason = (
            {"data.in_memory": "no"},
            f"decoded anew for each epoch; in memory they would take {_bytes(need)}",
        )
    draft.choose("loading", values, reason)
    if machine.device == "cuda":  # as many micro-batches as its memory needs
        draft.choose("memory", {"optim.accumulation_steps": "auto"}, "")


def choose_held_out(draft: Draft, facts: SetFacts) -> None:
    """Choose how many images are kept out of the training, for the checks and the verdict."""
    count = min(int(HELD_OUT * facts.images), MOST_HELD_OUT)
    count = count if count >= LEAST_HELD_OUT else 0
    why = "for the checks and the verdict" if count else f"so few images, {facts.images}, are all trained on"
    draft.choose("held out", {"data.hold_out": count}, why)


def choose_pixels(draft: Draft, facts: SetFacts) -> None:
    """Choose mean and deviation of the channels: the set's own, unless they would take long to compute."""
    if draft.value("init.mean") is not None and len(draft.value("init.mean")) == facts.channels:
        draft.choose("pixels", {}, "mean and deviation of the weights that training starts from")
    elif min(facts.images, MEASURED) * facts.decode_seconds <= PATIENCE:
        draft.choose("pixels", {"data.mean": "computed", "data.std": "computed"}, "")


def choose_mining(draft: Draft, epochs: float) -> None:
    """Choose what difficulty is taken from."""
    host = draft.value("method.host", "mae")
    if draft.value("method.predicting_loss") == "none":
        draft.choose("mining", {}, "none, by your setting: the plain host")
        return
    exact = {"fast.remember": False, "fast.shared_blocks": 0, "fast.prediction_ratio": 1.0}
    whole = "by the teacher's look at the whole image, as in the paper"
    if host != "mae" or draft.value("method.target", "auto") == "teacher":
        draft.choose("mining", {}, whole)
    elif epochs < EPOCHS_TO_REMEMBER:
        draft.choose("mining", exact, f"{whole}; {epochs:.1f} epochs are too few to remember")
    else:
        values = {"fast.remember": True, "fast.shared_blocks": -1, "fast.prediction_ratio": 0.667}
        draft.choose("mining", values, "by what the student found hard in earlier epochs, which costs no teacher")


def rate(batch: int, width: int) -> float:
    """Return the peak learning rate for a batch and the width of an encoder."""
    return LR * math.sqrt(batch / LR_BATCH * LR_WIDTH / width)


def choose_optimizer(draft: Draft, images_seen: float) -> None:
    """Choose batch, learning rate, and the teacher's momentum, for a number of images that the training sees."""
    batch = max((b for b in BATCHES if images_seen / b >= STEPS), default=BATCHES[0])
    draft.choose("batch", {"batch_size": batch}, f"leaves {images_seen / batch:,.0f} steps")
    batch = draft.value("batch_size")
    width = draft.value("model.width") or SIZES[draft.value("model.size", "base")]["width"]
    values: dict[str, Any] = {"optim.lr": float(f"{rate(batch, width):.2g}")}
    if "optim.base_lr" in draft.fixed:
        values = {}
    draft.choose("rate", values, "as it is used, not scaled again; it follows batch and width")
    steps = max(1.0, images_seen / batch)
    momentum = {
        "method.momentum_start": round(min(0.999, max(0.9, 1 - 20 / steps)), 4),
        "method.momentum_end": round(min(0.9999, max(0.99, 1 - 4 / steps)), 5),
    }
    draft.choose("teacher", momentum, "averages a twentieth of the steps at first, a quarter at the end")
    if draft.value("fast.remember", False) or draft.value("method.predicting_loss") == "none":
        del draft.reasons["teacher"]  # there is no teacher


def choose_length(draft: Draft, images_seen: float, images: int) -> None:
    """Choose the number of steps."""
    if "steps" in draft.fixed or "epochs" in draft.fixed:
        draft.choose("length", {name: 0 for name in ("steps", "epochs") if name in draft.fixed}, "")
        return
    batch = draft.value("batch_size")
    most = MAX_EPOCHS * images
    steps = max(1, int(min(images_seen, most) / batch))
    reason = f"{steps * batch / images:,.1f} epochs"
    if images_seen > most:
        reason += f"; more than {MAX_EPOCHS:,} are not planned, so that not all of the time is used"
    draft.choose("length", {"steps": steps, "train.log_every": max(1, min(50, steps // 20))}, reason)


def extrapolation(draft: Draft, images_seen: float, device: str) -> str:
    """Return in what a training goes beyond those that the rules were tried with; empty if it does not."""
    width = draft.value("model.width") or SIZES[draft.value("model.size", "base")]["width"]
    beyond = [
        *(["a CPU"] if device != "cpu" else []),
        *([f"models up to {TRIED_WIDTH} wide"] if width > TRIED_WIDTH else []),
        *([f"up to {TRIED_IMAGES / 1000:,.0f} k images seen"] if images_seen > TRIED_IMAGES else []),
    ]
    return f"extrapolated: they were tried on {', '.join(beyond)} (docs/plan.md)" if beyond else ""


def _bytes(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
