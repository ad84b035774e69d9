"""Manifest of a checkpoint, which tells a damaged checkpoint from a whole one."""

import hashlib
import json
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

WEIGHTS, TRAINING = "model.safetensors", "training.safetensors"
MANIFEST = "manifest.json"
MEMORY = "memory/"
"""Prefix of the tensors of a difficulty memory, which are NaN where nothing is remembered yet."""


def write_manifest(folder: Path, step: int) -> None:
    """Write size and digest of each file of a checkpoint, and its step."""
    files = sorted(folder.iterdir())
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(_digest, files))
    entries = {
        path.name: {"bytes": path.stat().st_size, "sha256": digest} for path, digest in zip(files, digests, strict=True)
    }
    (folder / MANIFEST).write_text(json.dumps({"step": step, "files": entries}, indent=1) + "\n", encoding="utf-8")


def may_be_listed(file: Path) -> bool:
    """Return whether the manifest beside a file lists it, or is broken; False where there is none."""
    try:
        return file.name in json.loads((file.parent / MANIFEST).read_text(encoding="utf-8"))["files"]
    except OSError:
        return False
    except (ValueError, KeyError, TypeError):
        return True


def damage(checkpoint: Path, names: Collection[str] = (WEIGHTS, TRAINING)) -> str | None:
    """Return what is wrong with the files of a checkpoint, None if they are whole.

    Without a manifest, which earlier versions did not write, the files are compared with each other: their step, and
    type and shape of weights and optimizer state; and every value must be finite.

    Args:
        checkpoint: its folder, ``step_<step>``.
        names: files to check.
    """
    try:
        stamps = tuple(
            (path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(checkpoint.iterdir())
        )
        return _damage(checkpoint, tuple(names), stamps)
    except OSError as error:
        return f"it cannot be read: {error}"


@cache
def _damage(checkpoint: Path, names: tuple[str, ...], stamps: tuple[Any, ...]) -> str | None:
    """See :func:`damage`; files that have not changed are checked once."""
    for name in names:
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
    number = checkpoint.name.removeprefix("step_")
    step = int(number) if number.isdecimal() else None  # a copy may have any name
    if (checkpoint / MANIFEST).is_file():
        return _differences(checkpoint, names, step)
    try:
        return _contradictions(checkpoint, names, step)
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"it cannot be read: {error}"


def _differences(checkpoint: Path, names: tuple[str, ...], step: int | None) -> str | None:
    """Compare files with the manifest."""
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))
        entries = [(name, int(manifest["files"][name]["bytes"]), manifest["files"][name]["sha256"]) for name in names]
    except (ValueError, KeyError, TypeError):
        return f"{MANIFEST} is broken"
    if step is not None and manifest.get("step") != step:
        return f"{MANIFEST} is that of step {manifest.get('step')}"
    for name, size, _ in entries:
        if (found := (checkpoint / name).stat().st_size) != size:
            return f"{name} has {found:,} bytes, {size:,} were written"
    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(_digest, [checkpoint / name for name in names]))
    for (name, _, written), digest in zip(entries, digests, strict=True):
        if digest != written:
            return f"{name} is not as it was written"
    return None


def _contradictions(checkpoint: Path, names: tuple[str, ...], step: int | None) -> str | None:
    """Compare the files of a checkpoint without a manifest with each other."""
    kinds: dict[str, tuple[Any, Any]] = {}
    for name in names:
        with safe_open(checkpoint / name, "pt") as file:
            saved = json.loads(file.metadata()["hardpatch"]).get("step", step)
            if step is not None and saved != step:
                return f"{name} is that of step {saved}"
            for key in file.keys():  # noqa: SIM118 - not a dictionary
                value = file.get_tensor(key)
                kinds[key] = value.dtype, value.shape
                if value.is_floating_point() and not key.startswith(MEMORY) and not value.isfinite().all():
                    return f"{key} in {name} is NaN or infinite"
    states: dict[str, set[str]] = {}
    for key, kind in kinds.items():
        parameter, _, entry = key.rpartition("/")
        if not parameter or key.startswith(MEMORY):
            continue
        states.setdefault(parameter, set()).add(entry)
        expected = kinds.get(f"student.{parameter}")
        if WEIGHTS in names and (expected is None or (kind[1] != torch.Size([]) and kind != expected)):
            return f"{key} in {TRAINING} does not fit the weights"
    entries = set().union(*states.values())
    incomplete = next((parameter for parameter, found in states.items() if found != entries), None)
    return None if incomplete is None else f"{TRAINING} lacks state of {incomplete}"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
