"""Starting and resuming a run in a folder, for all verbs but ``pretrain``, whose settings come in sections."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Generic

from hardpatch.errors import UserError, did_you_mean, shown
from hardpatch.paths import typed, user_path
from hardpatch.train import resume as resuming
from hardpatch.train import run_folder
from hardpatch.train.moved import digests, moved, say_replaced
from hardpatch.train.resume import ValuesOf
from hardpatch.train.settings import FREE_TO_CHANGE, Settings, changed, to_dict, to_yaml

log = logging.getLogger("hardpatch")


@dataclass(frozen=True)
class FolderRun(Generic[Settings]):
    """Inputs, settings and folder of a run."""

    folder: Path
    inputs: dict[str, Any]
    """paths and other plain values, by argument name"""
    settings: Settings
    resume: bool
    """True if the folder holds an earlier part of this run"""
    note: str | None = None
    """line about an extension, if this call makes one"""
    preset: tuple[str, Settings] | None = field(default=None, compare=False)
    """what the settings of a new run began with"""

    def write(self, verb: str, arguments: list[str] | tuple[str, ...], readme: str) -> None:
        """Write ``config.yaml``, ``environment.json`` and ``README.md``.

        Args:
            verb: name on the command line.
            arguments: command line that made the run, verb first; empty for a call from Python.
            readme: template, see :func:`hardpatch.train.run_folder.write_files`.

        Raises:
            UserError: if the folder cannot be created.
        """
        values = {"verb": verb, **self.inputs, **to_dict(self.settings)}
        content = digests(self.inputs)
        if self.resume:
            say_replaced(self.folder, content)
        command = arguments or [verb, "--out", str(self.folder)]
        run_folder.write_files(self.folder, to_yaml(values), command, readme, self._base(), content)
        if self.note is not None:
            log.info("%s", self.note)

    def _base(self) -> dict[str, Any] | None:
        if self.preset is None:
            return None
        (name, preset), values = self.preset, to_dict(self.settings)
        before = {key: value for key, value in to_dict(preset).items() if values[key] != value}
        return {"name": f"preset {name}", "settings": before}


def open_run(
    verb: str,
    out: str | Path | None,
    inputs: Mapping[str, Any],
    presets: Mapping[str, Settings],
    preset: str | None,
    values: Mapping[str, Any],
    *,
    resume: bool,
    required: Mapping[str, str],
    earlier: Mapping[str, Any] = MappingProxyType({}),
    values_of: ValuesOf | None = None,
) -> FolderRun[Settings]:
    """Return inputs and settings of a new run, or of a run to resume. Nothing is written.

    A resumed run takes everything that is not passed from its folder.

    Args:
        verb: name on the command line.
        out: folder of the run.
        inputs: paths and other plain values that are not settings, by argument name; None if not passed.
        presets: settings by name of the preset; the first is the default.
        preset: name of the preset to start from; with ``resume``, the one that the run began with, or None.
        values: settings in which the run differs from the preset.
        resume: continue the run in ``out``.
        required: inputs that a new run needs, and what is expected for each.
        earlier: values of settings that a resumed run lacks because it began before they existed, where the default
            preset has others.
        values_of: learning rate, and all else that depends on the progress; a resumed run may have another length then.

    Raises:
        UserError: if an input is missing, a name is unknown, or a resumed run would change what it learns.
    """
    if out is None:
        raise UserError("--out: expected a folder for the run, got nothing")
    folder = user_path(out, "--out")
    inputs = {name: _plain(name, value) for name, value in inputs.items()}
    if preset is not None and preset not in presets:
        raise UserError(
            f"--preset: expected one of {', '.join(presets)}, "
            f"got {shown(repr(preset))}{did_you_mean(preset, [*presets])}"
        )
    if resume:
        return _resumed(verb, folder, inputs, presets, preset, values, required, earlier, values_of)
    run_folder.check_new(folder)
    preset = preset or next(iter(presets))
    settings = changed(presets[preset], values, inputs)
    for name, expected in required.items():
        if inputs.get(name) is None:
            option = "RUN" if name == "run" else f"--{name}"
            raise UserError(f"{option}: expected {expected}, got nothing")
    return FolderRun(folder, dict(inputs), settings, resume, preset=(preset, presets[preset]))


def _plain(name: str, value: Any) -> Any:
    """Return paths as text; only a suffix may be empty."""
    if isinstance(value, list | tuple):
        return [_plain(name, item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return typed(value, f"--{name}") if isinstance(value, str) and name != "label_suffix" else value


def _resumed(
    verb: str,
    folder: Path,
    inputs: Mapping[str, Any],
    presets: Mapping[str, Settings],
    preset: str | None,
    values: Mapping[str, Any],
    required: Mapping[str, str],
    earlier: Mapping[str, Any],
    values_of: ValuesOf | None,
) -> FolderRun[Settings]:
    """Return the run in ``folder``; what is passed again must be the same."""
    saved = run_folder.read_values(folder)
    if "verb" not in saved and required.keys() <= saved.keys():
        raise UserError(
            f"--resume: {folder / 'config.yaml'} has no verb: an earlier version of hardpatch wrote it, whose runs "
            "this version cannot continue; its weights can still be loaded; to train again, take another --out"
        )
    if saved.get("verb") != verb:
        raise UserError(f"--out: expected a folder of hardpatch {verb}, {folder} is one of another verb")
    default = next(iter(presets.values()))
    names = {f.name for f in fields(default)}
    old = changed(default, {name: value for name, value in {**earlier, **saved}.items() if name in names})
    new = changed(presets[preset] if preset else old, values, inputs)
    old_values, new_values = to_dict(old), to_dict(new)
    changes = {name: (value, new_values[name]) for name, value in old_values.items() if new_values[name] != value}
    changes |= {
        name: (saved.get(name), value)
        for name, value in inputs.items()
        if value is not None and value != saved.get(name)
    }
    elsewhere = moved(folder, saved, inputs)
    free = {*FREE_TO_CHANGE, *elsewhere, *(resuming.named(values, new.extend) if values_of else ())}
    resuming.refuse_changes(folder, {name: pair for name, pair in changes.items() if name not in free})
    note = None
    if values_of is not None and new.extend != "no" and (values.get("epochs") or values.get("steps")):
        new, note = _extended(folder, old, new, values_of)
    return FolderRun(folder, {name: saved.get(name) for name in inputs} | elsewhere, new, resume=True, note=note)


def _extended(folder: Path, old: Settings, new: Settings, values_of: ValuesOf) -> tuple[Settings, str | None]:
    """Return the settings of a resumed run of another length, and a line about it, None if it has the same length."""
    start = resuming.start_of(folder)
    if not start.step:  # it begins anew
        return replace(new, extensions=()), None
    planned, total = old.total_steps(start.images), new.total_steps(start.images)

    def values(step: int, total: int) -> tuple[float, ...]:
        return values_of(new, start.images, step, total)

    new = replace(new, extensions=resuming.extended(start, old.extensions, planned, total, new.extend, values))
    line = resuming.line_of(total, new.extensions, lambda step, total: values(step, total)[0])
    return new, line if total != planned else None
