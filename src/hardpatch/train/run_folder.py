"""The folder of a run: what is written into it before the first step, and whether a run in it may go on."""

import json
import os
import platform
import shlex
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from hardpatch import __version__
from hardpatch.errors import UserError


def read_values(folder: Path) -> dict[str, Any]:
    """What the ``config.yaml`` of a run folder of any training verb holds.

    Raises:
        UserError: if there is none.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"--out: expected a run folder with config.yaml to go on with, found none in {folder}")
    values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return values


def refuse_changes(folder: Path, changed: Mapping[str, tuple[Any, Any]]) -> None:
    """Refuse to go on if there are settings that have ``changed``, from what to what.

    Raises:
        UserError: names every one of them, with both values.
    """
    if changed:
        told = "; ".join(f"{name} was {old!r}, now {new!r}" for name, (old, new) in changed.items())
        raise UserError(f"--resume: {folder} was made with other settings: {told}; take those, or another --out")


def check_new(folder: Path) -> None:
    """Refuse to write a new run over anything.

    Raises:
        UserError: if the folder holds something, or is no folder.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out: expected a folder, {folder} is a file")
    if folder.is_dir() and any(folder.iterdir()):
        what = "a run" if (folder / "config.yaml").exists() else "other files"
        raise UserError(f"--out: {folder} already holds {what}; add --resume to go on with it, or take another --out")


def write_files(folder: Path, settings: str, arguments: Sequence[str], readme: str) -> None:
    """As :func:`write`, for any training verb.

    Args:
        folder: of the run.
        settings: what goes into ``config.yaml``.
        arguments: the command line, verb first.
        readme: a text with places for ``{command}`` and ``{folder}``.

    Raises:
        UserError: if the folder cannot be made.
    """
    command = shlex.join(["hardpatch", *arguments])
    history: dict[str, Any] = {"command": command, "resumed_by": []}
    if (folder / "environment.json").is_file():  # the run is resumed: the command that made it stays
        history |= json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        if command not in (history["command"], *history["resumed_by"]):
            history["resumed_by"].append(command)
        command = history["command"]
    environment = {
        "command": command,
        "resumed_by": history["resumed_by"],
        "hardpatch": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "lightning-fabric", "timm")},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU",
        "threads": torch.get_num_threads(),
    }
    try:
        for name in ("checkpoints", "pictures"):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: expected a folder that can be written, got {folder}: {error.strerror}") from None
    texts = {
        "README.md": readme.format(command=command, folder=folder),
        "environment.json": json.dumps(environment, indent=2) + "\n",
        "config.yaml": f"# hardpatch {__version__}: {command}\n{settings}",
    }
    for name, text in texts.items():
        partial = folder / f".{name}.partial"
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, folder / name)
