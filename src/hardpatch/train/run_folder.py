"""Folder of a run: the files that are written before the first step, and the checks before it is begun or resumed."""

import json
import logging
import platform
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from hardpatch import __version__
from hardpatch.errors import UserError
from hardpatch.files import reason_of, remove, write_text_atomically
from hardpatch.printable import printable
from hardpatch.processes import is_first
from hardpatch.train import checkpoint
from hardpatch.train.checkpoint import NONE_YET
from hardpatch.train.lock import LOCK, locked, refuse_used
from hardpatch.train.metrics import read_metrics
from hardpatch.train.result import RESULT
from hardpatch.train.state import UnsavedError
from hardpatch.yaml_text import flat, parse_yaml, read_settings

FIRST = ("environment.json", "README.md")
"""Files that are written before ``config.yaml``"""
FOLDERS = ("checkpoints", "pictures")
LATER = (
    *("dumps", "log.txt", "metrics.jsonl", "tensorboard", "undecodable.txt", "plan.txt", "neighbors.safetensors"),
    "report.html",
)
"""Files that a training writes before its first checkpoint"""

log = logging.getLogger("hardpatch")


@contextmanager
def claimed(folder: Path, *, resume: bool) -> Iterator[None]:
    """Hold the lock of a run folder during the block, for a new run or one to resume.

    A new run that the disk stops before its first checkpoint leaves nothing behind, so that the same command works
    once there is room. No file of a run is written through a symbolic link.

    Raises:
        UserError: if another process uses the folder, it cannot be written, or is not empty for a new run.
    """
    with locked(folder):
        if not is_first():
            yield
            return
        if resume:
            _replace_links(folder)
        else:
            _check_empty(folder)
        try:
            yield
        except (OSError, UnsavedError):
            if not resume and not checkpoint.checkpoints(folder / "checkpoints"):
                for name in (*FIRST, *FOLDERS, *LATER, "config.yaml"):
                    remove(folder / name)
            raise


def _replace_links(folder: Path) -> None:
    """Remove links to what is only written; other files of a run replace a link when they are written.

    Raises:
        UserError: if the checkpoints are behind a link.
    """
    if (folder / "checkpoints").is_symlink():
        raise UserError(
            f"--out: {folder / 'checkpoints'} is a symbolic link, and a run writes nothing outside its folder: move "
            f"{(folder / 'checkpoints').resolve()} there, or move the whole run to where there is room"
        )
    for name in ("pictures", "tensorboard", "log.txt", "dumps"):
        if (folder / name).is_symlink():
            log.warning(
                "%s was a symbolic link to %s and is now the run's own", folder / name, (folder / name).resolve()
            )
            remove(folder / name)


def resume_point(folder: Path) -> Path | None:
    """Return the newest checkpoint that is not damaged, None if the run was stopped before it wrote the first one.

    Raises:
        UserError: if there are checkpoints, but all are damaged, or if there were some, and they are gone.
    """
    newest = checkpoint.newest_whole(folder)
    if newest is None:
        steps = max((row["step"] for row in read_metrics(folder / "metrics.jsonl")), default=0)
        if (folder / "config.yaml").is_file() and not (folder / "checkpoints" / NONE_YET).is_file():
            raise UserError(
                f"--resume: the checkpoints of {folder} are gone, and it had some; its metrics go up to step {steps}; "
                f"bring back {folder / 'checkpoints'} from a copy, or start a new run with another --out"
            )
        if steps:
            log.warning(
                "%s has no checkpoint yet, although metrics.jsonl goes up to step %d: the training starts from step 0",
                *(folder / "checkpoints", steps),
            )
    return newest


def read_values(folder: Path) -> dict[str, Any]:
    """Read the ``config.yaml`` of a run folder, of any training verb.

    Raises:
        UserError: if there is none, or it does not hold settings.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"--out: expected a run folder with config.yaml to resume, found none in {folder}")
    return read_settings(path, "--out")


def check_new(folder: Path) -> None:
    """Refuse a folder for a new run unless it is empty or does not exist.

    Raises:
        UserError: if it holds something, is a file, or another process uses it.
    """
    if not is_first():  # which may have begun to use it
        return
    refuse_used(folder)
    _check_empty(folder)


def _check_empty(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out: expected a folder, {folder} is a file")
    if folder.is_dir() and any(folder.iterdir()) and not _only_begun(folder):
        if (folder / "config.yaml").exists():
            raise UserError(f"--out: {folder} already holds a run; add --resume to continue it, or use another --out")
        raise UserError(f"--out: {folder} already holds other files; use another --out")


def _only_begun(folder: Path) -> bool:
    """Return whether a folder holds nothing but what a run that was killed before its start had written."""
    names = {path.name for path in folder.iterdir() if not path.name.startswith((".", LOCK))}
    hidden = [path for path in folder.iterdir() if path.name.startswith(".")]
    if any(".partial" not in path.name and LOCK not in path.name for path in hidden):
        return False
    contents = (path.name for name in FOLDERS if name in names for path in (folder / name).iterdir())
    if names - {*FIRST, *FOLDERS} or any(name != NONE_YET for name in contents):
        return False
    return not names & {*FIRST} or bool(read_environment(folder))


def read_environment(folder: Path) -> dict[str, Any]:
    """Read ``environment.json``; empty if there is none, or it is not that of a run."""
    try:
        values = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    known = isinstance(values, dict) and {"hardpatch", "command", "resumed_by"} <= values.keys()
    return values if known and isinstance(values["resumed_by"], list) else {}


def _changes(folder: Path, settings: str, command: str, before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the changes of a run's settings by its calls: those before, and what this one changes, which is said."""
    old, new = flat(read_values(folder)), flat(parse_yaml(settings, "config.yaml"))
    changed = {name: [old[name], new[name]] for name in old if name in new and old[name] != new[name]}
    if not changed:
        return before
    newest = checkpoint.newest(folder)
    step = 0 if newest is None else checkpoint.step_of(newest)
    words = "; ".join(f"{name} {one} -> {other}" for name, (one, other) in changed.items())
    log.info("changed from step %d on: %s", step, words)
    if {"epochs", "steps"} & changed.keys() and (folder / RESULT).is_file():
        kept = folder / f"result_step_{step:08d}.json"
        (folder / RESULT).rename(kept)
        log.info("the result of the shorter run is now %s", kept.name)
    return [*before, {"step": step, "command": command, "settings": changed}]


def write_files(
    folder: Path,
    settings: str,
    arguments: Sequence[str],
    readme: str,
    base: Mapping[str, Any] | None = None,
    content: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write ``config.yaml``, ``environment.json`` and ``README.md``, each completely or not at all.

    Also makes the folders ``checkpoints`` and ``pictures``.

    Args:
        folder: of the run.
        settings: content of ``config.yaml``.
        arguments: command line that made the run, verb first.
        readme: template with the placeholders ``{command}`` and ``{folder}``.
        base: what the settings of a new run began with: its ``name``, and under ``settings`` its values of those in
            which the run differs.
        content: digests of the sets of images, by argument name.

    Raises:
        UserError: if the folder cannot be created.
    """
    command = shlex.join(["hardpatch", *arguments])
    history: dict[str, Any] = {"command": command, "resumed_by": [], "base": base}
    if (folder / "config.yaml").is_file():  # the run is resumed: the command that made it stays
        history |= {"base": None} | read_environment(folder)
        if command not in (history["command"], *history["resumed_by"]):
            history["resumed_by"].append(command)
        history["changes"] = _changes(folder, settings, command, history.get("changes", []))
        command = history["command"]
    environment = {
        "command": command,
        "resumed_by": history["resumed_by"],
        "changes": history.get("changes", []),
        "base": history["base"],
        "hardpatch": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "torchvision", "lightning-fabric", "timm")},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "CPU",
        "threads": torch.get_num_threads(),
        **({"content": dict(content)} if content else {}),
    }
    try:
        for name in FOLDERS:
            (folder / name).mkdir(parents=True, exist_ok=True)
        if not (folder / "config.yaml").is_file() and not checkpoint.checkpoints(folder / "checkpoints"):
            (folder / "checkpoints" / NONE_YET).touch()
    except OSError as error:
        raise UserError(f"--out: expected a folder that can be written, got {folder}: {reason_of(error)}") from None
    # config.yaml comes last: a folder that has one has the others too.
    shown = printable(command)
    write_text_atomically(folder / "environment.json", json.dumps(environment, indent=2) + "\n")
    write_text_atomically(folder / "README.md", readme.format(command=shown, folder=printable(str(folder))))
    write_text_atomically(folder / "config.yaml", f"# hardpatch {__version__}: {shown}\n{settings}")
