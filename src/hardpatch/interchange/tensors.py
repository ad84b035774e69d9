"""Tensors of a weights file of any library, read without running code."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hardpatch.choices import WeightsName
from hardpatch.errors import UserError
from hardpatch.pickles import is_page, load_pickle
from hardpatch.weights import check_finite

log = logging.getLogger("hardpatch")

CONFIGS = ("config.json", "preprocessor_config.json")
"""Descriptions of a network and of its images beside its weights, of Hugging Face and timm."""
FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "open_clip_model.safetensors")
"""Names of weights in a folder of Hugging Face or timm; the first that is there is read."""


def read_tensors(path: Path, weights: WeightsName = "auto") -> dict[str, Tensor]:
    """Read the state dict of a weights file, all values finite.

    Args:
        path: ``.safetensors``, an index of several of them, or a pickle of tensors and plain values.
        weights: of a pickle that has both: HPM's ``state_dict`` and ``ema_state_dict``, DINO's ``student`` and
            ``teacher``; see :data:`~hardpatch.choices.WeightsName`.

    Raises:
        UserError: if the file has no weights, or could run code; says what it is.
    """
    if path.name.endswith(".index.json"):
        return _read_shards(path, weights)
    state = _read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path, weights)
    check_finite(state, path)
    return state


def check_content(path: Path) -> None:
    """Refuse a file that stands for weights which were not fetched.

    Raises:
        UserError: says what the file is.
    """
    with path.open("rb") as file:
        is_pointer = file.read(64).startswith(b"version https://git-lfs")
    if is_pointer:
        raise UserError(
            f"RUN: {path} is a pointer of Git LFS and not the weights themselves; fetch them with `git lfs pull`"
        )
    if is_page(path):
        raise UserError(f"RUN: {path} is an HTML page and no weights, as a failed download leaves; download it again")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"RUN: {path} is not a safetensors file, or was downloaded in part ({error}); download it again"
        ) from None


def _read_shards(path: Path, weights: WeightsName) -> dict[str, Tensor]:
    """Read the files that an index of Hugging Face names, which lie beside it."""
    try:
        names: Any = json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()
        files = sorted({path.parent / Path(name).name for name in names})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"RUN: {path} is no index of weights: expected a weight_map of names of files") from None
    missing = next((file for file in files if not file.is_file()), None)
    if missing is not None:
        raise UserError(f"RUN: {missing} is missing, which {path.name} names")
    return {name: value for file in files for name, value in read_tensors(file, weights).items()}


def read_pickle(path: Path, weights: WeightsName = "auto") -> dict[str, Tensor]:
    """Read the state of a checkpoint (``.pth``): its ``state_dict``, or ``ema_state_dict`` for the teacher.

    Without these: its ``model``, DINO's ``student`` or ``teacher``, or the whole content if that is tensors.

    Raises:
        UserError: if the file is not a checkpoint, or has anything but tensors and plain values.
    """
    content = load_pickle(path, "RUN")
    key = "ema_state_dict" if weights == "teacher" else "state_dict"
    if isinstance(content, dict):
        if weights == "auto" and _tensors(content.get("teacher")):
            weights = "teacher"
            both = _tensors(content.get("student"))
            has = "student and teacher; the teacher is" if both else "a teacher only, which is"
            log.warning("%s has %s taken%s", path, has, ", --weights student takes the other" if both else "")
        names = (key, "model", weights)
        state = next((content[name] for name in names if _tensors(content.get(name))), content)
        if _tensors(state):
            return state
    found = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
    raise UserError(f"RUN: {path} has no `{key}` of tensors; found: {found[:200]}")


def _tensors(state: object) -> bool:
    return isinstance(state, Mapping) and bool(state) and all(isinstance(value, Tensor) for value in state.values())
