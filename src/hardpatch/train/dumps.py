"""Dumps of steps that were NaN or infinite, for ``hardpatch replay``: what the step was computed from, and its weights.

``dumps/step_00000048/`` of a run folder holds ``dump.json``, ``weights.safetensors`` (student and teacher) and the
batch of each process whose loss was not finite, ``batch_<rank>.safetensors``; of all processes if the loss was finite
everywhere and the gradient was not. Nothing is pickled.
"""

import json
import logging
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hardpatch import __version__
from hardpatch.data.batch import CROP_OFFSET
from hardpatch.errors import UserError, shown
from hardpatch.files import atomic_path, optional_file, reason_of
from hardpatch.pickles import save_tensors
from hardpatch.printable import printable
from hardpatch.processes import gather_values, on_first, process_rank
from hardpatch.train.bad_steps import WatchedStep
from hardpatch.train.saving import weights_of
from hardpatch.train.sharding import collected, whole
from hardpatch.weights import parse_metadata

FACTS, WEIGHTS = "dump.json", "weights.safetensors"

BatchContent = tuple[dict[str, Tensor], list[str]]
"""Tensors of a batch, and the names of its samples"""

log = logging.getLogger("hardpatch")


def batch_name(rank: int) -> str:
    """Return the file of the batch of a process."""
    return f"batch_{rank}.safetensors"


def write_dump(job: Any, watched: WatchedStep) -> Path | None:
    """Write a dump of a bad step, completely or not at all. All processes must call it, the first writes the weights.

    Returns:
        Its folder, also if there was one of this step; None if the run has as many as it keeps, the batch is gone, or
        the disk refuses, which is said.
    """
    state, rank = job.state, process_rank().rank
    folder = job.folder / "dumps" / f"step_{watched.step:08d}"
    exists, count = on_first(lambda: (folder.is_dir(), len(list(folder.parent.glob("step_*")))))
    if exists:
        return folder
    if count >= state.bad_steps.settings.dumps or not all(gather_values(watched.batch is not None)):
        return None
    own = gather_values(bool(watched.own))
    writers = own if any(own) else [True] * len(own)
    weights = {name: collected(value) for name, value in weights_of(state.model, state.average).items()}
    facts = _facts(job, watched, [number for number, writes in enumerate(writers) if writes])
    failure = on_first(lambda: _write(folder, facts, weights, _batch(job, watched.batch) if writers[0] else None))
    if failure is not None:
        log.warning("%s cannot be written: %s; the run goes on without it", folder, failure)
        return None
    if rank and writers[rank]:
        with optional_file(folder), atomic_path(folder / batch_name(rank)) as partial:
            _write_batch(partial, *_batch(job, watched.batch))
    return folder


def dump_of(run: Path, steps: Collection[int]) -> Path | None:
    """Return the first dump of one of some steps of a run, None if there is none. All processes must call it."""
    folders = [run / "dumps" / f"step_{step:08d}" for step in sorted(steps)]
    number = on_first(lambda: next((number for number, path in enumerate(folders) if path.is_dir()), None))
    return None if number is None else folders[number]


def _facts(job: Any, watched: WatchedStep, ranks: list[int]) -> dict[str, Any]:
    """Return plain values for ``dump.json``. All processes must call it."""
    state = job.state
    names = {id(value): name for name, value in state.model.named_parameters()}
    finite = whole(watched.norms).isfinite().tolist()
    return {
        "hardpatch": __version__,
        "torch": torch.__version__,
        "device": str(state.fabric.device.type),
        "precision": str(state.fabric.strategy.precision.precision),
        "processes": process_rank().world_size,
        "ranks": ranks,
        "step": watched.step,
        "updates_since": state.bad_steps.updates - watched.updates,
        "gradients_not_finite": [
            names[id(weight)] for weight, good in zip(watched.weights, finite, strict=True) if not good
        ],
        "metadata": dict(job.metadata),
    }


def _write(
    folder: Path,
    facts: dict[str, Any],
    weights: Mapping[str, Tensor],
    batch: BatchContent | None,
) -> str | None:
    """Write what the first process has. Returns why the disk refused, None if it did not."""
    facts["weight_norms"] = weight_norms(weights)
    try:
        with atomic_path(folder) as partial:
            partial.mkdir(parents=True)
            save_tensors(weights, partial / WEIGHTS, {})
            (partial / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
            if batch is not None:
                _write_batch(partial / batch_name(0), *batch)
            size = sum(path.stat().st_size for path in partial.iterdir())
    except OSError as error:
        return reason_of(error)
    log.info("%s has the weights and the batch of that step, %.1f MiB", folder, size / 2**20)
    return None


def weight_norms(weights: Mapping[str, Tensor]) -> dict[str, float]:
    """Return the norm of the weights of each module, by its name; NaN and infinity as they are."""
    squares: dict[str, float] = {}
    for name, value in weights.items():
        if value.is_floating_point():
            module = name.rpartition(".")[0]
            squares[module] = squares.get(module, 0.0) + float(value.double().square().sum())
    return {module: total**0.5 for module, total in squares.items()}


def _batch(job: Any, batch: Any) -> BatchContent:
    """Return the tensors of a batch of this process, and the names of its samples where the batch knows them."""
    tensors = dict(_tensors(batch))
    indices, source, memory = getattr(batch, "indices", None), getattr(job, "source", None), job.state.memory
    if indices is None or source is None:
        return tensors, []
    images = indices % CROP_OFFSET
    if memory is not None:
        tensors["memory"] = memory.maps[images]
    return tensors, [printable(source.name(i)) for i in images.tolist()]


def _tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in tuples, lists and dictionaries, by a path such as ``samples/0/image``."""
    if isinstance(value, Tensor):
        yield name, value
        return
    parts = value._asdict() if hasattr(value, "_asdict") else value
    if isinstance(parts, list | tuple):
        parts = dict(enumerate(parts))
    for key, part in parts.items() if isinstance(parts, dict) else ():
        yield from _tensors(part, f"{name}/{key}" if name else str(key))


def _write_batch(path: Path, tensors: Mapping[str, Tensor], names: list[str]) -> None:
    save_tensors(tensors, path, {"samples": json.dumps(names)})


def read_facts(folder: Path) -> dict[str, Any]:
    """Read ``dump.json`` of a dump; of the folder of a run with a single dump, of that one.

    Raises:
        UserError: if it is no dump.
    """
    path = folder / FACTS
    if not path.is_file():
        dumps = sorted((folder / "dumps").glob("step_*"))
        found = f", {folder} is a run with {', '.join(map(str, dumps))}" if dumps else f", got {folder}"
        raise UserError(f"DUMP: expected a folder RUN/dumps/step_* with {FACTS}{found}")
    facts = parse_metadata(path.read_text(encoding="utf-8", errors="replace"), path, "DUMP")
    needed = {"step": int, "processes": int, "ranks": list, "updates_since": int, "metadata": dict}
    for name, kind in needed.items():
        if not isinstance(facts.get(name), kind) or isinstance(facts[name], bool):
            raise UserError(f"DUMP: {path}: expected {name} as {kind.__name__}, got {shown(facts.get(name))}")
    return facts


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a file of a dump.

    Raises:
        UserError: if it is no safetensors file.
    """
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"DUMP: {path} is not a safetensors file: {' '.join(str(error).split())}") from None
