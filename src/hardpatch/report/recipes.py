"""Cost of the recipes on this machine: parameters, images seen and hours, for the list of recipes."""

from dataclasses import replace
from typing import NamedTuple

import torch

from hardpatch.bench.flops import block, step_flops
from hardpatch.configuration import config
from hardpatch.configuration.build import initial_model
from hardpatch.configuration.hosts import HOSTS, needs_teacher
from hardpatch.configuration.sections import RunConfig
from hardpatch.pretrain import recipes
from hardpatch.pretrain.plan import duration, short
from hardpatch.pretrain.speed import seconds_per_image

SETS = {"tiny_imagenet": 100_000, "imagenet": 1_281_167, "cifar10": 50_000, "demo": 4_000}
"""Images of the set that a recipe is named after; the first that is part of its name."""
WIDE = 384
"""Encoder width from which on the speed of the wide reference applies."""


class RecipeRow(NamedTuple):
    """A recipe and its cost."""

    name: str
    side: int
    """of the images in pixels"""
    parameters: int
    """of encoder and decoders"""
    images_seen: int
    seconds: float
    """about, on this machine"""
    summary: str

    def __str__(self) -> str:
        millions, seen = f"{self.parameters / 1e6:.1f} M", short(self.images_seen)
        return f"{self.name:<30} {self.side:>4} {millions:>8} {seen:>7} {duration(self.seconds):>10}  {self.summary}"


HEADER = f"{'recipe':<30} {'px':>4} {'size':>8} {'images':>7} {'time here':>10}  purpose"


def recipe_rows(images: int | None = None) -> list[RecipeRow]:
    """Return all recipes with their costs; measures this machine for a few seconds.

    Args:
        images: in the set; None is the set that a recipe is named after.
    """
    rates = _Rates()
    rows = []
    for name in recipes.names():
        run = config.build(recipes.read(name))
        number = images or next((count for word, count in SETS.items() if word in name), SETS["imagenet"])
        seen = run.total_steps(number) * run.batch_size
        summary = recipes.text(name).splitlines()[0].removeprefix("# ")
        seconds = seen * operations(run) / rates.of(run)
        rows.append(RecipeRow(name, max(run.image_size), _parameters(run), seen, seconds, summary))
    return rows


def operations(run: RunConfig) -> float:
    """Floating-point operations of a training step per image.

    Exact for host mae (:func:`~hardpatch.bench.flops.step_flops`). For others the encoder's blocks alone are counted,
    without heads, predictor and tokenizer, which are small beside them.
    """
    exact = step_flops(replace(run, method=replace(run.method, target="auto", frozen=None)))
    width, depth = run.encoder_shape["width"], run.encoder_shape["depth"]
    tokens = 1 + run.grid[0] * run.grid[1]
    whole = depth * block(width, tokens)
    if run.method.frozen is not None:
        return (0.0 if exact is None else sum(exact.values())) + whole
    if exact is not None:
        return sum(exact.values())
    multi_crop = HOSTS[run.method.host].multi_crop
    views = 2 if multi_crop else 1
    total = (3 + needs_teacher(run)) * views * whole
    if multi_crop:
        local = 1 + (run.ibot.local_size // run.model.patch_size) ** 2
        total += 3 * run.ibot.local_crops * depth * block(width, local)
    return total


class _Rates:
    """Operations per second of this machine in training, of a narrow and of a wide model; each is measured once."""

    def __init__(self) -> None:
        self._known: dict[bool, float] = {}

    def of(self, run: RunConfig) -> float:
        """Return the rate that applies to a run."""
        wide = run.encoder_shape["width"] >= WIDE
        if wide not in self._known:
            reference = config.build(recipes.read("imagenet_base_200" if wide else "cifar10_tiny"))
            if wide:  # two blocks are as fast as twelve, for each of them
                reference = replace(reference, model=replace(reference.model, depth=2, decoder_depth=2))
            reference = replace(reference, batch_size=4 if wide else 64)
            self._known[wide] = operations(reference) / seconds_per_image(reference)
        return self._known[wide]


def _parameters(run: RunConfig) -> int:
    with torch.device("meta"):
        return sum(weight.numel() for weight in initial_model(run).parameters())
