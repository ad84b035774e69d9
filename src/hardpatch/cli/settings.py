"""What the command lines of the verbs that train on labels have in common."""

import argparse
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from hardpatch.cli.arguments import Parser, workers

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def training_arguments(parser: Parser, presets: Mapping[str, "DataclassInstance"]) -> None:
    """--out, --preset, --weights, --resume, the machine's, and an option for every setting of a run.

    A setting that is not given is left out of the namespace: the preset's value stands.
    """
    parser.add_argument("--out", required=True, metavar="DIR", type=Path, help="folder of the run")
    parser.add_argument(
        "--preset", choices=tuple(presets), default="small", help="settings to start from (%(default)s)"
    )
    parser.add_argument("--weights", choices=("student", "teacher", "untrained"), default="student")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    machine.add_argument(
        "--workers", type=workers, default="auto", metavar="N", help="processes that decode (default: auto)"
    )
    machine.add_argument("--checkpoint_minutes", type=float, default=10.0, metavar="X", help="default: %(default)s")
    group = parser.add_argument_group("settings", f"in brackets their values in the presets {' | '.join(presets)}")
    run = next(iter(presets.values()))
    hints = get_type_hints(type(run))
    for setting in fields(run):
        values = [getattr(preset, setting.name) for preset in presets.values()]
        told = " | ".join(" ".join(map(str, value)) if isinstance(value, tuple) else str(value) for value in values)
        hint = hints[setting.name]
        if get_origin(hint) is UnionType:
            hint = next(part for part in get_args(hint) if part is not NoneType)
        more: dict[str, Any] = {"default": argparse.SUPPRESS, "help": f"{setting.metadata['help']} [{told}]"}
        if hint is bool:
            more["action"] = argparse.BooleanOptionalAction
        elif hint in (int, float):
            more |= {"type": hint, "metavar": "X"}
        elif get_origin(hint) is not tuple:
            more["choices"] = get_args(hint)
        elif ... in get_args(hint):
            more |= {"type": get_args(hint)[0], "nargs": "+", "metavar": "X"}
        else:
            more |= {"type": get_args(hint)[0], "nargs": 2, "metavar": ("LOW", "HIGH")}
        group.add_argument(f"--{setting.name}", **more)


def given_settings(options: argparse.Namespace, preset: "DataclassInstance") -> dict[str, Any]:
    """The settings that the command line has, tuples for lists."""
    names = (setting.name for setting in fields(preset))
    given = {name: getattr(options, name) for name in names if name in options}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def check_folder(folder: Path, settings: Mapping[str, Any], free: tuple[str, ...], *, resume: bool) -> None:
    """Refuse to write over anything, or to go on with other settings than a run began with.

    Args:
        folder: of the run.
        settings: what ``config.yaml`` holds, or would.
        free: names of those that may change.
        resume: whether it goes on.

    Raises:
        UserError: says why.
    """
    from hardpatch.train import run_folder

    if not resume:
        run_folder.check_new(folder)
        return
    then = run_folder.read_values(folder)
    changed = [name for name in settings if name not in free and then.get(name) != settings[name]]
    run_folder.refuse_changes(folder, {name: (then.get(name), settings[name]) for name in changed})


def stopped(step: int, total: int, signal: int) -> int:
    """Tell how an interrupted run goes on; the exit status."""
    print(f"stopped after step {step} of {total}, nothing is lost; the same command with --resume goes on")
    return 128 + signal
