"""Command-line options of the verbs that train in a run folder."""

import argparse
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from hardpatch.cli.arguments import Images, Parser, Size, devices, frozen_blocks, number_in, workers, write_json
from hardpatch.printable import print_json, say
from hardpatch.ranges import SIDE, Range
from hardpatch.train.settings import LoopSettings
from hardpatch.transcript import note

GROUPS = {
    "machine": ("workers", "device", "precision", "max_bad_fraction"),
    "resuming": ("extend",),
    "several processes": ("devices", "nodes", "strategy", "answer_minutes"),
    "NaN and divergence": ("bad_steps", "on_divergence", "rollback_lr", "max_rollbacks", "lr_factor", "dumps"),
    "log and checkpoints": (
        *("logger", "val_every", "log_every", "checkpoint_minutes", "checkpoint_steps", "keep_checkpoints"),
        *("keep_every", "background_saving"),
    ),
}
"""Settings that have their own group in the help; all others affect what is learned."""
WRITTEN = ("extensions",)
"""Settings that the program writes into a run folder, which are no options."""
ALIASES = {"probe_only": ("--probe_only", "--probe-only")}
"""Ways to write an option that has several."""


def training_parser(
    verb: str,
    description: str,
    presets: Mapping[str, LoopSettings],
    data: str = "--train PATH --val PATH",
    *,
    several: bool = False,
    by_size: Collection[str] = (),
) -> Parser:
    """Return the parser of a verb that trains on labels: RUN, the data, the folder, and an option for every setting.

    With `several`, --train and --val may be repeated. The default preset takes the settings `by_size` from the number
    of images.
    """
    parser = run_parser(verb, description)
    parser.usage = f"hardpatch {verb} RUN {data} --out DIR [--OPTION VALUE]\n       hardpatch {verb} --resume --out DIR"
    parser.add_argument("run", metavar="RUN", nargs="?", help="run folder, or weights of timm, Hugging Face, MAE, DINO")
    for name, use in (("train", "train"), ("val", "evaluate")):
        about = f"data to {use} on" + ("; may be repeated" if several else "")
        parser.add_argument(f"--{name}", metavar="PATH", action=Images, several=several, help=about)
    if len(presets) > 1:
        parser.add_argument(
            "--preset",
            metavar="NAME",
            help=f"defaults of the settings: {', '.join(presets)} (default: {next(iter(presets))})",
        )
    add_settings(parser, presets, by_size)
    return parser


def run_parser(verb: str, description: str) -> Parser:
    """Return the parser of a verb that trains in a run folder."""
    parser = Parser(verb, description)
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out, which needs nothing else")
    output_arguments(parser)
    return parser


def output_arguments(parser: Parser) -> None:
    """Add --json and --display of a training."""
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the result to this file, too")
    parser.add_argument(
        "--display",
        choices=("auto", "plain", "quiet", "json"),
        default="auto",
        help="auto: a live view on a terminal, else plain; plain: lines of text; quiet: warnings and the result; json: "
        "one JSON object a line on stdout, the result last (default: %(default)s)",
    )


def add_settings(parser: Parser, presets: Mapping[str, LoopSettings], by_size: Collection[str] = ()) -> None:
    """Add an option for every setting; for `by_size` see :func:`training_parser`.

    A setting that is not on the command line is absent from the namespace, so that the value of the preset or of the
    resumed run applies.
    """
    groups = {name: parser.add_argument_group(name) for name in ("training", *GROUPS)}
    preset = next(iter(presets.values()))
    hints = get_type_hints(type(preset))
    for setting in fields(preset):
        if setting.name in WRITTEN:
            continue
        section = next((name for name, members in GROUPS.items() if setting.name in members), "training")
        defaults = _defaults(setting.name, presets, setting.name in by_size)
        groups[section].add_argument(
            *ALIASES.get(setting.name, (f"--{setting.name}",)),
            default=argparse.SUPPRESS,
            help=f"{setting.metadata['help']} ({defaults})".replace("%", "%%"),
            **_kind(setting.name, hints[setting.name], setting.metadata.get("range")),
        )


def given_settings(options: argparse.Namespace, presets: Mapping[str, LoopSettings]) -> dict[str, Any]:
    """Return the settings that are on the command line."""
    return {
        setting.name: getattr(options, setting.name)
        for setting in fields(next(iter(presets.values())))
        if setting.name in options
    }


def print_result(options: argparse.Namespace, result: Mapping[str, Any], lines: Iterable[str]) -> int:
    """Write the result of a training to the file of --json, and print it as --display says; returns the exit code.

    Args:
        options: of :func:`output_arguments`.
        result: content of ``result.json``.
        lines: the same for people.
    """
    if options.json is not None:
        write_json(options.json, result)
    if options.display == "json":
        for line in lines:
            note(line)
        print_json(result)
    else:
        for line in lines:
            say(line)
    return 0


def stopped(options: argparse.Namespace, verb: str, step: int, total: int, folder: Path, signal: int) -> int:
    """Print how to resume an interrupted run; returns the exit code."""
    command = f"hardpatch {verb} --resume --out {folder}"
    line = f"stopped after step {step} of {total}, nothing is lost; resume with: {command}"
    if options.display == "json":
        note(line)
        print_json({"event": "stopped", "step": step, "steps": total, "signal": signal, "resume": command})
    else:
        say(line)
    return 128 + signal


def _defaults(name: str, presets: Mapping[str, LoopSettings], by_size: bool) -> str:
    """Describe the default of a setting: one value, or one for each preset."""
    values = {preset: _text(name, getattr(settings, name)) for preset, settings in presets.items()}
    if by_size:
        values[next(iter(presets))] = "by the number of images"
    if len(set(values.values())) == 1:
        return f"default: {next(iter(values.values()))}"
    return "default: " + ", ".join(f"{preset} {value}" for preset, value in values.items())


def _text(name: str, value: Any) -> str:
    """Return a value as it is written on the command line."""
    if name == "workers" and value is None:
        return "auto"
    if value is None:
        return "null"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _kind(name: str, hint: Any, numbers: Range | None) -> dict[str, Any]:
    """Return the arguments of ``add_argument`` for the type of a setting."""
    if name == "workers":
        return {"type": workers, "metavar": "N"}
    if name == "devices":
        return {"type": devices, "metavar": "N"}
    if name == "freeze":
        return {"type": frozen_blocks, "metavar": "K"}
    if name == "image_size" and tuple[int, int] in get_args(hint):
        return {"type": _or_null(number_in(SIDE)), "nargs": "+", "action": Size, "metavar": "PIXELS"}
    parts = [part for part in get_args(hint) if part is not NoneType] if NoneType in get_args(hint) else [hint]
    optional, part = len(parts) < len(get_args(hint)) and NoneType in get_args(hint), parts[0]
    if part is bool:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(part) is Literal:
        return {"choices": get_args(part)}
    if get_origin(part) is tuple:
        kind = get_args(part)[0] if numbers is None else number_in(numbers)
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
    kind = part if numbers is None else number_in(numbers)
    return {"type": _or_null(kind) if optional else kind, "metavar": "X"}


def _or_null(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        return None if text == "null" else kind(text)

    parse.__name__ = kind.__name__  # argparse names it in its complaint
    return parse
