"""Replay of a step of pre-training that was NaN or infinite, from its dump, to name the module that made it."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hardpatch.configuration import config
from hardpatch.configuration.build import initial_model, target_of
from hardpatch.configuration.sections import RunConfig
from hardpatch.configuration.upgrade import upgrade
from hardpatch.data.batch import CROP_OFFSET, Batch
from hardpatch.data.reading import read_reading
from hardpatch.errors import UserError
from hardpatch.methods.hpm import Losses
from hardpatch.paths import user_path
from hardpatch.pretrain.first_not_finite import Culprit, FirstNotFinite
from hardpatch.pretrain.schedule import schedule
from hardpatch.pretrain.step import Learner
from hardpatch.randomness import set_part
from hardpatch.train.checkpoint import with_prefix
from hardpatch.train.device import start_fabric
from hardpatch.train.dumps import WEIGHTS, batch_name, read_facts, read_tensors
from hardpatch.weights import check_normalization, check_sizes, check_tensors, described, stored_tensors

PRECISIONS = {"32-true": "fp32", "bf16-mixed": "bf16", "16-mixed": "fp16"}
"""Names of Fabric's precisions in settings."""


@dataclass(frozen=True)
class ReplayResult:
    """Result of :func:`replay`."""

    dump: Path
    step: int
    rank: int
    """process whose batch this is"""
    device: str
    precision: str
    loss: float
    parts: dict[str, float]
    """terms of the loss"""
    gradients_not_finite: list[str]
    """parameters"""
    culprit: Culprit | None
    """the first module that made it; None if no module did or it does not come again"""
    entered: str | None
    """first module whose input was NaN or infinite already"""
    weights_not_finite: list[str]
    largest: list[tuple[str, float]]
    """samples with the largest values in what the module made, the largest first"""
    norm: float | None
    """of the weights of that module"""
    differences: list[str]
    """what is not as it was in the training"""

    @property
    def reproduced(self) -> bool:
        """True if the loss or a gradient is NaN or infinite again."""
        return not torch.tensor(self.loss).isfinite() or bool(self.gradients_not_finite)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        culprit = None
        if self.culprit is not None:
            ranges = {name: [part._asdict() for part in getattr(self.culprit, name)] for name in ("inputs", "outputs")}
            culprit = self.culprit._asdict() | ranges
        return asdict(self) | {"dump": str(self.dump), "culprit": culprit, "reproduced": self.reproduced}


def replay(dump: str | Path, *, device: str = "cpu", precision: str | None = None) -> ReplayResult:
    """Compute a dumped step again and name the first module that makes NaN or infinity: ``hardpatch replay``.

    Args:
        dump: folder ``RUN/dumps/step_*``, which a run of ``hardpatch pretrain`` wrote.
        device: ``cpu``, ``cuda`` or ``auto``.
        precision: ``fp32``, ``bf16`` or ``fp16``; None is that of the training.

    Returns:
        The result for the first process whose batch makes it, or else for the last one.

    Raises:
        UserError: if it is no such dump, or this machine lacks the device.
    """
    folder = user_path(dump, "DUMP")
    facts = read_facts(folder)
    metadata = facts["metadata"]
    if "config" not in metadata:
        raise UserError(f"DUMP: expected a dump of hardpatch pretrain, {folder} is one of a {metadata.get('kind')}")
    ranks = [rank for rank in facts["ranks"] if isinstance(rank, int) and (folder / batch_name(rank)).is_file()]
    if not ranks:
        raise UserError(f"DUMP: expected {batch_name(0)} or that of another process in {folder}, found none")
    for rank in ranks:
        result = _replay(folder, facts, rank, device, precision)
        if result.reproduced:
            break
    return result


def _replay(folder: Path, facts: Mapping[str, Any], rank: int, device: str, precision: str | None) -> ReplayResult:
    tensors, texts = read_tensors(folder / batch_name(rank))
    was = PRECISIONS.get(str(facts.get("precision")), "fp32")
    learner = _learner(folder, facts, device, precision or ("bf16" if was == "fp16" and device == "cpu" else was))
    batch = _batch(folder / batch_name(rank), tensors)
    run, metadata = learner.run, facts["metadata"]
    if learner.mining.memory is not None and "memory" in tensors:
        learner.mining.memory.maps[batch.indices % CROP_OFFSET] = tensors["memory"].to(learner.fabric.device)
    processes, parts = max(1, facts["processes"]), learner.accumulation_steps
    set_part(rank, processes, max(1, len(batch.indices) // (parts * run.data.crops)))
    learner.step = facts["step"] - 1
    values = schedule(run, learner.step, learner.total)
    if metadata.get("mining_stopped"):
        values = values._replace(alpha=0.0)
    networks: dict[str, nn.Module] = {"student": learner.model}
    if learner.teacher is not None:
        networks["teacher"] = learner.teacher.network
    rows = _watch_rows(learner)
    with described(folder, "DUMP"), FirstNotFinite(networks) as watch:
        _, losses = learner.compute_gradients(batch, values, parts)
    names = dict(zip(batch.indices.tolist(), _names(texts, len(batch.indices)), strict=True))
    return _result(folder, facts, rank, learner, losses, watch, [names[index] for index in rows])


def _learner(folder: Path, facts: Mapping[str, Any], device: str, precision: str) -> Learner:
    """Build student and teacher of a dump, with their weights.

    Raises:
        UserError: if the weights do not fit the settings.
    """
    metadata, path = facts["metadata"], folder / WEIGHTS
    tensors = stored_tensors(path, "DUMP")
    with described(path, "DUMP"):
        check_sizes(metadata, tensors)
        check_normalization(metadata)
        saved = config.build(upgrade(metadata["config"], str(folder)))
        machine: dict[str, Any] = {"device": device, "precision": precision}
        train = replace(saved.train, **machine, compile="no", checkpoint_activations=False)
        steps = 1 if saved.optim.accumulation_steps == "auto" else saved.optim.accumulation_steps
        run = replace(saved, train=train, optim=replace(saved.optim, accumulation_steps=steps))
        reading = read_reading(metadata)
        run = replace(run, data=replace(run.data, channels=reading.number))
        total, images = int(metadata["steps"]), int(metadata["images"])
        model = initial_model(run, metadata["mean"], metadata["std"], metadata["outputs"], reading)
    fabric = start_fabric(device, precision, "--", settle=False)
    learner = Learner(run, model, fabric, total, target_of(run, fabric.device)[0], images)
    state, _ = read_tensors(path)
    for prefix, network in (("student.", learner.model), ("teacher.", learner.teacher and learner.teacher.network)):
        if network is not None:
            own = {name.removeprefix(prefix): kind for name, kind in tensors.items() if name.startswith(prefix)}
            check_tensors(network.state_dict(), own, path, "DUMP")
            network.load_state_dict(with_prefix(state, prefix))
    return learner


def _batch(path: Path, tensors: Mapping[str, Tensor]) -> Batch:
    fields = {name: tensors[name] for name in Batch._fields if name in tensors}
    missing = [name for name in ("images", "indices", "labels") if name not in fields]
    if missing:
        raise UserError(f"DUMP: {path}: expected the tensors of a batch, it lacks {', '.join(missing)}")
    return Batch(**{**fields, "bad": []})  # type: ignore[arg-type]


def _names(texts: Mapping[str, str], count: int) -> list[str]:
    """Return the names of the samples in a batch, or their numbers if they do not fit."""
    try:
        names = json.loads(texts["samples"])
    except (ValueError, KeyError):
        names = []
    fits = isinstance(names, list) and len(names) == count
    return [str(name) for name in names] if fits else [f"sample {number}" for number in range(count)]


def _watch_rows(learner: Learner) -> list[int]:
    """Return a list that holds, of the last micro-batch, the index of the image in each row of the student's input."""
    rows: list[int] = []
    original = learner.inputs

    def inputs(batch: Batch) -> Any:
        result = original(batch)
        rows[:] = batch.indices.repeat(len(result.images) // len(batch.indices)).tolist()
        if result.views is not None:  # the crops were shuffled, and `order` sorts them
            rows[:] = [rows[position] for position in result.views.order.argsort().tolist()]
        return result

    learner.inputs = inputs  # type: ignore[method-assign]
    return rows


def _result(
    folder: Path,
    facts: Mapping[str, Any],
    rank: int,
    learner: Learner,
    losses: Losses,
    watch: FirstNotFinite,
    names: list[str],
) -> ReplayResult:
    culprit, device = watch.culprit, learner.fabric.device.type
    precision = PRECISIONS[str(learner.fabric.strategy.precision.precision)]
    named = {f"student.{name}": value for name, value in learner.model.state_dict().items()}
    bad = [name for name, p in learner.model.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    return ReplayResult(
        dump=folder,
        step=facts["step"],
        rank=rank,
        device=device,
        precision=precision,
        loss=losses.loss.item(),
        parts={name: value.item() for name, value in losses.parts.items()},
        gradients_not_finite=bad,
        culprit=culprit,
        entered=watch.entered,
        weights_not_finite=[
            name for name, value in named.items() if value.is_floating_point() and not value.isfinite().all()
        ],
        largest=[
            (names[row], size)
            for row, size in (culprit.largest if culprit else [])
            if culprit is not None and _rows(culprit) == len(names)
        ],
        norm=None if culprit is None else _norm(culprit.module, facts),
        differences=_differences(facts, learner.run, device, precision),
    )


def _norm(module: str, facts: Mapping[str, Any]) -> float | None:
    """Return the norm of the weights of a module and of those in it; None if it has none."""
    norms = facts.get("weight_norms")
    inside = [
        norm
        for name, norm in (norms.items() if isinstance(norms, dict) else ())
        if isinstance(norm, int | float) and f"{name}.".startswith(f"{module}.")
    ]
    return math.hypot(*inside) if inside else None


def _rows(culprit: Culprit) -> int:
    bad = next(part for part in culprit.outputs if part.bad)
    return bad.shape[0] if bad.shape else 0


def _differences(facts: Mapping[str, Any], run: RunConfig, device: str, precision: str) -> list[str]:
    """Return what is not as it was in the training, a line each."""
    was = {"device": facts.get("device"), "torch": facts.get("torch")}
    now = {"device": device, "torch": torch.__version__}
    lines = [f"{name}: {was[name]} in the training, {now[name]} here" for name in was if was[name] != now[name]]
    if device != facts.get("device") and run.model.drop_path:
        lines.append("drop path: each device draws its own numbers")
    before = PRECISIONS.get(str(facts.get("precision")), "fp32")
    if precision != before:
        lines.append(f"precision: {before} in the training, {precision} here")
    if facts["updates_since"]:
        lines.append(f"weights: those of {facts['updates_since']} updates later, when the host learned of the step")
    if facts["processes"] > 1:
        lines.append(f"processes: the batch of 1 of {facts['processes']}, without what the others added")
    if run.fast.remember:
        lines.append("fast.remember: the remembered difficulty is that after the step")
    return lines
