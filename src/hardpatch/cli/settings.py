"""The command line that the verbs share that train in a run folder."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from hardpatch.cli.arguments import Parser, workers
from hardpatch.train.settings import LoopSettings

GROUPS = {
    "machine": ("workers", "device", "precision", "max_bad_fraction"),
    "log and checkpoints": ("val_every", "log_every", "checkpoint_minutes", "checkpoint_steps"),
}
"""Settings that are listed apart; all others decide what is learned."""


def training_parser(verb: str, description: str, presets: Mapping[str, LoopSettings]) -> Parser:
    """Make a parser of a verb that trains on labels: RUN, the data, the folder, and an option for every setting."""
    parser = run_parser(verb, description)
    parser.add_argument("run", metavar="RUN", nargs="?", help="run folder, weights file or checkpoint of a ViT")
    parser.add_argument("--train", metavar="PATH", help="data to learn from")
    parser.add_argument("--val", metavar="PATH", help="data to evaluate on")
    parser.add_argument("--preset", metavar="NAME", help=f"{', '.join(presets)} (default: {next(iter(presets))})")
    add_settings(parser, presets)
    return parser


def run_parser(verb: str, description: str) -> Parser:
    """Make a parser of a verb that trains in a run folder."""
    parser = Parser(verb, description)
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out, which needs nothing else")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the result there too")
    return parser


def add_settings(parser: Parser, presets: Mapping[str, LoopSettings]) -> None:
    """Add an option for every setting.

    A setting that is not given is left out of the namespace: the value of the preset stands, or that of the run that is
    resumed.
    """
    names = " | ".join(presets)
    groups = {name: parser.add_argument_group(f"{name} [{names}]") for name in ("training", *GROUPS)}
    preset = next(iter(presets.values()))
    hints = get_type_hints(type(preset))
    for setting in fields(preset):
        section = next((name for name, members in GROUPS.items() if setting.name in members), "training")
        values = " | ".join(_shown(getattr(each, setting.name)) for each in presets.values())
        groups[section].add_argument(
            f"--{setting.name}",
            default=argparse.SUPPRESS,
            help=f"{setting.metadata['help']} [{values}]".replace("%", "%%"),
            **_kind(setting.name, hints[setting.name]),
        )


def given_settings(options: argparse.Namespace, presets: Mapping[str, LoopSettings]) -> dict[str, Any]:
    """Return the settings that the command line has."""
    return {
        setting.name: getattr(options, setting.name)
        for setting in fields(next(iter(presets.values())))
        if setting.name in options
    }


def stopped(verb: str, step: int, total: int, folder: Path, signal: int) -> int:
    """Say how an interrupted run is resumed; returns the exit code."""
    print(f"stopped after step {step} of {total}, nothing is lost; resume with: ", end="")
    print(f"hardpatch {verb} --resume --out {folder}")
    return 128 + signal


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _kind(name: str, hint: Any) -> dict[str, Any]:
    """Arguments of ``add_argument`` for the type of a setting."""
    if name == "workers":
        return {"type": workers, "metavar": "N"}
    parts = [part for part in get_args(hint) if part is not NoneType] if NoneType in get_args(hint) else [hint]
    optional, part = len(parts) < len(get_args(hint)) and NoneType in get_args(hint), parts[0]
    if part is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(part) is Literal:
        return {"choices": get_args(part)}
    if get_origin(part) is tuple:
        kind = get_args(part)[0]
        several = ... in get_args(part)
        return (
            {"type": kind, "nargs": "+", "metavar": "X"}
            if several
            else {
                "type": kind,
                "nargs": 2,
                "metavar": ("LOW", "HIGH"),
            }
        )
    return {"type": _or_null(part) if optional else part, "metavar": "X"}


def _or_null(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        return None if text == "null" else kind(text)

    parse.__name__ = kind.__name__  # argparse names it in its complaint
    return parse
