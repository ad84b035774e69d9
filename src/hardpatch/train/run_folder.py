"""Folder of a run: the files that are written before the first step, and the checks before it is begun or resumed."""

import json
import platform
import shlex
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from hardpatch import __version__
from hardpatch.errors import UserError
from hardpatch.files import write_text_atomically
from hardpatch.printable import printable
from hardpatch.yaml_text import read_settings


def read_values(folder: Path) -> dict[str, Any]:
    """Read the ``config.yaml`` of a run folder, of any training verb.

    Raises:
        UserError: if there is none, or it does not hold settings.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"--out: expected a run folder with config.yaml to resume, found none in {folder}")
    return read_settings(path, "--out")


def refuse_changes(folder: Path, changed: Mapping[str, tuple[Any, Any]]) -> None:
    """Refuse to resume a run with other settings than it began with.

    Args:
        folder: of the run.
        changed: old and new value of each setting that differs, by name.

    Raises:
        UserError: names each of them, with both values.
    """
    if changed:
        changes = "; ".join(f"{name} was {old!r}, now {new!r}" for name, (old, new) in changed.items())
        raise UserError(f"--resume: {folder} was made with other settings: {changes}; take those, or another --out")


def check_new(folder: Path) -> None:
    """Refuse a folder for a new run unless it is empty or does not exist.

    Raises:
        UserError: if it holds something, or is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out: expected a folder, {folder} is a file")
    if folder.is_dir() and any(folder.iterdir()):
        if (folder / "config.yaml").exists():
            raise UserError(f"--out: {folder} already holds a run; add --resume to continue it, or use another --out")
        raise UserError(f"--out: {folder} already holds other files; use another --out")


def write_files(folder: Path, settings: str, arguments: Sequence[str], readme: str) -> None:
    """Write ``config.yaml``, ``environment.json`` and ``README.md``, each completely or not at all.

    Also makes the folders ``checkpoints`` and ``pictures``.

    Args:
        folder: of the run.
        settings: content of ``config.yaml``.
        arguments: command line that made the run, verb first.
        readme: template with the placeholders ``{command}`` and ``{folder}``.

    Raises:
        UserError: if the folder cannot be created.
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
    # config.yaml comes last: a folder that has one has the others too.
    shown = printable(command)
    write_text_atomically(folder / "README.md", readme.format(command=shown, folder=printable(str(folder))))
    write_text_atomically(folder / "environment.json", json.dumps(environment, indent=2) + "\n")
    write_text_atomically(folder / "config.yaml", f"# hardpatch {__version__}: {shown}\n{settings}")
