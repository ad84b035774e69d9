"""Sets of images that were moved or replaced between a run and its resumption."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hardpatch.data.content import path_digest
from hardpatch.errors import UserError
from hardpatch.train.run_folder import read_environment

log = logging.getLogger("hardpatch")

MOVABLE = ("train", "val", "annotations", "val_annotations", "data")
"""Inputs of which content counts, not the path: images, label maps, annotations."""


def digests(inputs: Mapping[str, Any]) -> dict[str, str]:
    """Return the digest of each set among the inputs of a run, by argument name."""
    found = {name: path_digest(inputs[name]) for name in MOVABLE if inputs.get(name) is not None}
    return {name: digest for name, digest in found.items() if digest is not None}


def moved(folder: Path, saved: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the new paths of sets that lie elsewhere than before, by argument name.

    Args:
        folder: of the run.
        saved: inputs that it began with.
        inputs: those of this call; None if not passed.

    Raises:
        UserError: if there are other images at a new path.
    """
    began = read_environment(folder).get("content", {})
    paths = {name: inputs[name] for name in began if inputs.get(name) not in (None, saved.get(name))}
    found = digests(paths)
    for name, path in paths.items():
        if found.get(name) != began[name]:
            raise UserError(
                f"--{name}: expected a copy of what the run began with, {saved.get(name)!r}, got {path!r}: names, "
                "sizes or contents differ; name a copy, or start a new run with another --out"
            )
    return paths


def say_replaced(folder: Path, now: Mapping[str, str]) -> None:
    """Warn of sets that are other ones since the last call, such as after a broken image was repaired.

    Args:
        folder: of the run.
        now: digests of its sets.
    """
    for name, digest in read_environment(folder).get("content", {}).items():
        if now.get(name) not in (None, digest):
            log.warning("--resume: files in --%s were replaced since the last call; the training uses them", name)
