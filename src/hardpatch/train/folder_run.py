"""Beginning and resuming a run in a folder, for all verbs but ``pretrain``, whose settings come in sections."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic

from hardpatch.errors import UserError, did_you_mean
from hardpatch.train import run_folder
from hardpatch.train.settings import FREE_TO_CHANGE, Settings, changed, to_dict, to_yaml


@dataclass(frozen=True)
class FolderRun(Generic[Settings]):
    """Inputs and settings of a run, and the folder that it is in."""

    folder: Path
    inputs: dict[str, Any]
    """paths and other plain values by the name of their argument"""
    settings: Settings
    resume: bool

    def write(self, verb: str, arguments: list[str] | tuple[str, ...], readme: str) -> None:
        """Write the files of the folder that say what the run is.

        Raises:
            UserError: if the folder cannot be made.
        """
        values = {"verb": verb, **self.inputs, **to_dict(self.settings)}
        run_folder.write_files(self.folder, to_yaml(values), arguments or [verb, "--out", str(self.folder)], readme)


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
) -> FolderRun[Settings]:
    """Return what a verb is to do: of a new run, or of one that is resumed, of which the folder says the rest.

    Args:
        verb: its name.
        out: folder of the run.
        inputs: paths and other plain values that are no settings; None for what is not given.
        presets: settings by the name of a preset; the first is the default.
        preset: the settings to start from.
        values: settings in which the run differs.
        resume: whether the run in ``out`` is continued.
        required: inputs that a run cannot do without, and what is expected there.

    Raises:
        UserError: names what is missing, unknown, or other than the run began with.
    """
    if out is None:
        raise UserError("--out: expected a folder for the run, got nothing")
    folder = Path(out)
    inputs = {name: str(value) if isinstance(value, Path) else value for name, value in inputs.items()}
    if preset is not None and preset not in presets:
        raise UserError(
            f"--preset: expected one of {', '.join(presets)}, got {preset!r}{did_you_mean(preset, [*presets])}"
        )
    default = next(iter(presets.values()))
    if not resume:
        run_folder.check_new(folder)
        settings = changed(presets[preset] if preset else default, values, inputs)
        for name, expected in required.items():
            if inputs.get(name) is None:
                option = "RUN" if name == "run" else f"--{name}"
                raise UserError(f"{option}: expected {expected}, got nothing")
        return FolderRun(folder, dict(inputs), settings, resume)
    saved = run_folder.read_values(folder)
    if saved.get("verb") != verb:
        raise UserError(f"--out: expected a folder of hardpatch {verb}, {folder} is one of another verb")
    names = {f.name for f in fields(default)}
    before = changed(default, {name: value for name, value in saved.items() if name in names})
    now = changed(before if preset is None else presets[preset], values, inputs)
    differing = {name: (a, b) for name, a in to_dict(before).items() if (b := to_dict(now)[name]) != a}
    differing |= {
        name: (saved.get(name), value)
        for name, value in inputs.items()
        if value is not None and value != saved.get(name)
    }
    run_folder.refuse_changes(folder, {name: pair for name, pair in differing.items() if name not in FREE_TO_CHANGE})
    return FolderRun(folder, {name: saved.get(name) for name in inputs}, now, resume)
