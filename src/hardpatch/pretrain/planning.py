"""Planning: look at the set and the machine, measure candidates, and choose by the rules."""

import gc
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hardpatch.configuration import config
from hardpatch.configuration.build import initial_model, with_channels
from hardpatch.configuration.sections import RunConfig
from hardpatch.data.reading import Reading
from hardpatch.data.sources import Source
from hardpatch.errors import UserError
from hardpatch.paths import typed
from hardpatch.pretrain import rules
from hardpatch.pretrain.adopt import adopt
from hardpatch.pretrain.folder import check_new, configure
from hardpatch.pretrain.images import open_images, resolve_reading
from hardpatch.pretrain.plan import Plan, short
from hardpatch.pretrain.rules import Draft
from hardpatch.pretrain.set_and_machine import Machine, SetFacts, set_facts, this_machine
from hardpatch.pretrain.speed import Speed, seconds_per_image, training_speed
from hardpatch.ranges import check_options, check_text

OVERHEAD = 0.05
"""Fraction of the time that is kept for checks, checkpoints and pictures."""
START = 10.0
"""Seconds from the start to the first step, without the decoding of all images."""
TRIAL = 1.0
"""Seconds for which a step of each candidate is timed."""
FEW = 4
"""Images of a step that tells whether a whole one is timed."""
SLOW_STEP = 3.0
"""Seconds from which on no whole step is timed."""

Say = Callable[[str], object]
"""Shows a line about what is being done."""


def plan(
    data: str | Path | Sequence[str] | None = None,
    *,
    hours: float | None = None,
    recipe: str | None = None,
    config: str | Path | None = None,
    **settings: Any,
) -> Plan:
    """Choose a training for a set of images, this machine and a time: ``hardpatch plan``.

    Measures the speed of two or three models, which takes up to a minute.

    Args:
        data: images, as :func:`hardpatch.pretrain` takes them.
        hours: duration; two on a CPU and eight on a GPU by default.
        recipe: named run whose settings are kept; only its length is chosen, if ``hours`` is set.
        config: YAML file of settings, likewise.
        settings: settings that are kept, such as ``batch_size=32`` or ``**{"model.width": 128}``.

    Raises:
        UserError: for a mistake in the settings or the data.
    """
    paths = str(data) if isinstance(data, str | Path) else None if data is None else [str(path) for path in data]
    return make_plan(paths, hours, recipe, config, [f"--{name}={value}" for name, value in settings.items()])


def plan_or_configure(
    recipe: str | None,
    file: str | Path | None,
    data: str | Sequence[str] | None,
    folder: Path | None,
    changes: Sequence[str],
    *,
    resume: bool = False,
    hours: float | None = None,
    say: Say = lambda line: None,
) -> tuple[RunConfig | Plan, Path]:
    """Return a training and its folder: a plan for images without recipe, or for ``hours``, else a configuration.

    ``hours`` is the time that the training may take, and ``say`` shows what is being done. All other arguments, and the
    errors, are those of :func:`~hardpatch.pretrain.folder.configure`.
    """
    check_options(hours=hours)
    check_text("--recipe", recipe)
    check_text("--config", file)
    if resume and hours is not None:
        raise UserError("--hours: a resumed run keeps its length; leave it out")
    no_images = data is None and "data.path" not in config.names_in(changes)
    if resume or (hours is None and (recipe or file or no_images)):
        return configure(recipe, file, data, folder, changes, resume=resume)
    if no_images and not (recipe or file):
        recipe = "demo"
    folder = folder or Path("runs") / (recipe or (Path(file).stem if file else "run"))
    check_new(folder)
    return make_plan(data, hours, recipe, file, changes, say), folder


def make_plan(
    data: str | Sequence[str] | None,
    hours: float | None,
    recipe: str | None,
    file: str | Path | None,
    changes: Sequence[str],
    say: Say = lambda line: None,
) -> Plan:
    """Choose a training; see :func:`plan`.

    Args:
        data: path of the images, or several.
        hours: duration; None is the default of the machine.
        recipe: named run whose settings are kept.
        file: YAML file of settings, likewise.
        changes: settings that are kept, as on the command line.
        say: shows what is being done.
    """
    check_options(hours=hours)
    check_text("--recipe", recipe)
    check_text("--config", file)
    fixed, of_weights = config.given(changes), set[str]()
    length = next((name for name in ("steps", "epochs") if fixed.get(name) is not None), None)
    if hours is not None and length is not None:
        raise UserError(f"--hours, --{length}: expected one of the two, got both; each sets the length")
    if recipe or file:
        run, _ = configure(recipe, file, data, None, changes)
    else:
        if data is not None:
            if "data.path" in fixed:
                raise UserError("--data, --data.path: expected one of the two, got both; they are the same setting")
            fixed["data.path"] = (
                typed(data, "--data") if isinstance(data, str) else [typed(path, "--data") for path in data]
            )
        if fixed.get("init.weights") is not None:
            say("reading the weights to start from")
            adopted = adopt(config.build(rules.nested({"steps": 1, **fixed})), set(fixed))
            of_weights, fixed = adopted.keys() - fixed.keys(), fixed | adopted
        read = {name: value for name, value in fixed.items() if name.startswith("data.") or name == "train.device"}
        run = config.build(rules.nested({**read, "steps": 1}))
    say("looking at the images")
    source = open_images(run)
    reading, _ = resolve_reading(run, source)
    facts, machine = set_facts(source, reading), this_machine(run.train.device)
    if recipe or file:
        return estimate(run, source, reading, facts, machine, hours)
    seconds = 3600 * (rules.HOURS[machine.device] if hours is None else hours)
    return _Planner(source, reading, facts, machine, seconds, say).plan(fixed, of_weights)


def estimate(
    run: RunConfig,
    source: Source,
    reading: Reading,
    facts: SetFacts | None = None,
    machine: Machine | None = None,
    hours: float | None = None,
) -> Plan:
    """Measure how long a configured training takes, and with ``hours`` set its length by that.

    Args:
        run: the configuration, whose settings stay.
        source: its images.
        reading: how they are read.
        facts: of the set; None looks at it.
        machine: None is this one.
        hours: duration; None keeps the run's length.
    """
    facts = facts or set_facts(source, reading)
    machine = machine or this_machine(run.train.device)
    speed = _speed(run, source, reading, facts, machine)
    start = _starting(run, facts, machine)
    reasons = {}
    if hours is not None:
        steps = max(1, int(_images_in(3600 * hours, start, speed.images_per_second) / run.batch_size))
        run = replace(run, steps=steps, epochs=None)
        epochs = steps * run.batch_size / (facts.images - run.data.hold_out)
        reasons["length"] = f"{epochs:,.1f} epochs, by --hours {hours:g}"
    seen = run.total_steps(facts.images - run.data.hold_out) * run.batch_size
    seconds = start + seen / speed.images_per_second / (1 - OVERHEAD)
    return Plan(run, facts, machine, seconds, speed.images_per_second, _parameters(run, reading), reasons)


class _Planner:
    """Choices for one set, machine and time."""

    def __init__(
        self, source: Source, reading: Reading, facts: SetFacts, machine: Machine, seconds: float, say: Say
    ) -> None:
        self.source, self.reading, self.facts, self.machine = source, reading, facts, machine
        self.seconds, self.say = seconds, say

    def plan(self, fixed: Mapping[str, Any], of_weights: Collection[str]) -> Plan:
        """Choose all settings that are not fixed; ``of_weights`` are those that are not the user's among them."""
        facts, machine = self.facts, self.machine
        draft, seen = self._largest(fixed, of_weights)
        self._finish(draft, seen)
        run = draft.build()
        draft.reasons["set"] = facts.warning()
        self.say("timing the training")
        speed = _speed(run, self.source, self.reading, facts, machine)
        start = _starting(run, facts, machine)
        if not draft.length_fixed:
            self._finish(draft, _images_in(self.seconds, start, speed.images_per_second))
            run = draft.build()
        if speed.waiting > rules.WAITING and run.data.in_memory == "no":
            draft.reasons["loading"] += (
                f"; {speed.waiting:.0%} of the time is spent waiting for them: smaller copies load faster "
                f"(hardpatch shrink --side {2 * max(run.image_size)})"
            )
        seen = run.total_steps(facts.images - run.data.hold_out) * run.batch_size
        if beyond := rules.extrapolation(draft, seen, machine.device):
            draft.reasons["rules"] = beyond
        seconds = start + seen / speed.images_per_second / (1 - OVERHEAD)
        parameters = _parameters(run, self.reading)
        return Plan(run, facts, machine, seconds, speed.images_per_second, parameters, draft.reasons)

    def _largest(self, fixed: Mapping[str, Any], of_weights: Collection[str]) -> tuple[Draft, float]:
        """Return the draft of the largest model that sees enough images in the time, and how many it sees."""
        chosen: tuple[Draft, float] | None = None
        for size in rules.sizes(fixed):
            draft = Draft(fixed, of_weights=of_weights)
            rules.choose_size(draft, size, self.facts)
            rules.choose_held_out(draft, self.facts)
            rules.choose_pixels(draft, self.facts)
            rules.choose_loading(draft, self.facts, self.machine)
            self._finish(draft, rules.STEPS * rules.LR_BATCH)
            self.say(f"timing a model {size.width} wide")
            seen = self._images_seen(draft)
            what = f"sees {short(seen)} images in the time"
            if chosen is not None and seen < size.least_images:
                chosen[0].reasons["model"] += (
                    f"; {size.width} wide {what}, and is taken from {short(size.least_images)} on"
                )
                break
            draft.reasons["model"] = "; ".join(part for part in (what, draft.reasons["model"]) if part)
            chosen = draft, seen
        assert chosen is not None
        return chosen

    def _images_seen(self, draft: Draft) -> float:
        """Return the images that a training sees in the time, or in the length that is fixed."""
        run = draft.build()
        if draft.length_fixed:
            return run.total_steps(self.facts.images - run.data.hold_out) * run.batch_size
        seconds = seconds_per_image(run, TRIAL) + _loading(run, self.facts, self.machine)
        return _images_in(self.seconds, _starting(run, self.facts, self.machine), 1 / seconds)

    def _finish(self, draft: Draft, seen: float) -> None:
        """Choose what depends on the number of images that the training sees."""
        images = self.facts.images - draft.value("data.hold_out", 0)
        rules.choose_mining(draft, seen / images)
        rules.choose_optimizer(draft, seen)
        rules.choose_length(draft, seen, images)


def _speed(run: RunConfig, source: Source, reading: Reading, facts: SetFacts, machine: Machine) -> Speed:
    """Measure the speed of a training: as it will run, or by its parts where a single step takes long."""
    quick = replace(run, train=replace(run.train, compile="no"))
    step = seconds_per_image(with_channels(replace(quick, batch_size=min(FEW, run.batch_size)), facts.channels), 0.5)
    if step * run.batch_size < SLOW_STEP:
        speed = training_speed(quick, source, reading)
        gc.collect()  # frees the memory of a GPU for the run itself
        return speed
    loading = _loading(run, facts, machine)
    return Speed(1 / (step + loading), loading / (step + loading))


def _loading(run: RunConfig, facts: SetFacts, machine: Machine) -> float:
    """Return seconds per image of decoding that a step waits for."""
    if run.data.in_memory != "no":
        return 0.0
    on_all_cores = facts.decode_seconds / machine.cores / run.data.crops
    return on_all_cores if machine.device == "cpu" else 0.0


def _starting(run: RunConfig, facts: SetFacts, machine: Machine) -> float:
    """Return the seconds before the first step."""
    decoded = facts.images if run.data.in_memory != "no" else 0
    return START + decoded * facts.decode_seconds / machine.cores


def _images_in(seconds: float, start: float, images_per_second: float) -> float:
    """Return the images that a training of some duration sees."""
    return max(1.0, seconds - start) * (1 - OVERHEAD) * images_per_second


def _parameters(run: RunConfig, reading: Reading) -> int:
    with torch.device("meta"):
        model = initial_model(run, [0.5] * reading.number, [0.3] * reading.number, reading=reading)
    return sum(weight.numel() for weight in model.parameters())
