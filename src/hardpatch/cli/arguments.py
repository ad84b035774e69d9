"""Parser, argument types and options that the command lines of several verbs share."""

import argparse
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, get_args

from hardpatch.choices import Architecture, WeightsName
from hardpatch.cli.examples import EXAMPLES
from hardpatch.errors import UserError, shown
from hardpatch.files import reason_of, write_text_atomically
from hardpatch.paths import typed
from hardpatch.printable import say
from hardpatch.ranges import FREEZE, OPTIONS, SIDE, Range, check_text

ASKED = "\0parser"
"""Argument by which a verb hands out its parser instead of parsing; no argument of a process holds a null byte."""


class ParserAsked(Exception):  # noqa: N818 - it reports no error
    """Parser of a verb."""

    def __init__(self, parser: "Parser") -> None:
        self.parser = parser


PATHS = ("PATH", "DIR", "FILE", "RUN", "RUN2", "IMAGES", "N|FILE")
"""Placeholders in the help of arguments that are paths."""


class Parser(argparse.ArgumentParser):
    """Argument parser that reports mistakes as a UserError of one line."""

    def __init__(self, verb: str, description: str = "", *, add_help: bool = True) -> None:
        super().__init__(prog=f"hardpatch {verb}", description=description, add_help=add_help, allow_abbrev=False)
        self.examples = EXAMPLES.get(verb, ())

    def format_help(self) -> str:
        """Return the help text, which ends with examples."""
        text = super().format_help()
        return "\n  ".join([f"{text}\nexamples:", *self.examples]) + "\n" if self.examples else text

    def parse_args(self, arguments: Any = None, namespace: Any = None) -> Any:
        """Parse a command line whose positional arguments may stand anywhere."""
        self._hand_out(arguments or [])
        self._say_repeated(arguments or [])
        return self.parse_intermixed_args(arguments, namespace)

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """Convert a value, a path with ``~`` for the home folder; no option takes an empty text but a suffix."""
        if action.metavar in PATHS:
            arg_string = typed(arg_string, _name(action))
        elif action.metavar != "TEXT":
            check_text(_name(action), arg_string)
        return super()._get_value(action, arg_string)  # argparse has no public place for it

    def parse_with_settings(self, arguments: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """Parse the command line of a verb that also takes the settings of ``pretrain``; return those, too."""
        from hardpatch.configuration.config import with_section

        self._hand_out(arguments)
        self._say_repeated(arguments, with_section)
        return self.parse_known_args(self._joined(arguments))

    def _hand_out(self, arguments: Sequence[str]) -> None:
        if ASKED in arguments:
            raise ParserAsked(self)

    def _joined(self, arguments: Sequence[str]) -> list[str]:
        """Join each setting and its value to ``--name=value``, so that no value is taken for a positional argument."""
        joined: list[str] = []
        for argument in arguments:
            before = joined[-1] if joined else ""
            setting = before.startswith("--") and "=" not in before and before not in self._option_string_actions
            if setting and before != "--" and not argument.startswith("--"):
                joined[-1] = f"{before}={argument}"
            else:
                joined.append(argument)
        return joined

    def _say_repeated(self, arguments: Sequence[str], setting: Callable[[str], str] | None = None) -> None:
        """Say which options stand there more than once and count by their last value.

        Options of images are not among them: they take all values, or refuse a second one.
        """
        given = Counter[str]()
        for argument in arguments[: arguments.index("--") if "--" in arguments else None]:
            name = argument.split("=", 1)[0]
            action = self._option_string_actions.get(name)
            flag = action is not None and action.nargs == 0 and not isinstance(action, argparse.BooleanOptionalAction)
            if action is not None and not flag and not isinstance(action, Images):
                given[action.option_strings[0]] += 1
            elif action is None and setting is not None and name.startswith("--") and not name.endswith("+"):
                given[setting(name)] += 1
        for name, count in given.items():
            if count > 1:
                say(f"{self.prog}: {name} is given {count} times, the last one counts", error=True)

    def error(self, message: str) -> NoReturn:
        """Raise a UserError, with a suggestion for a misspelled option."""
        from hardpatch.errors import did_you_mean

        options = [option for action in self._actions for option in action.option_strings]
        message = re.sub(
            r"(?<=invalid choice: ).{300,}(?= \(choose from)|(?<=explicit argument ).{300,}|\S{300,}",
            lambda long: shown(long[0]),
            message,
        )
        unknown = re.match(r"unrecognized arguments: (\S+)", message)
        several = [
            action.option_strings[0]
            for action in self._actions
            if isinstance(action, Images) and action.several and action.option_strings
        ]
        if unknown and not unknown[1].startswith("-") and several:
            message += f"; the option stands before each of several paths, as in {several[0]} A {several[0]} B"
        raise UserError(message + (did_you_mean(unknown[1], options) if unknown else ""))


def _name(action: argparse.Action) -> str:
    """Return the name of an argument in messages."""
    return action.option_strings[0] if action.option_strings else str(action.metavar)


class Images(argparse.Action):
    """Store the path of images, or a list of paths if there are several; one that takes `several` may be repeated."""

    def __init__(self, *args: Any, several: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.several = several

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Add a path, or several."""
        before = getattr(namespace, self.dest)
        paths = [path for part in (before, values) for path in ([part] if isinstance(part, str) else part or [])]
        if len(paths) > 1 and not self.several:
            raise argparse.ArgumentError(self, f"expected one path, got {len(paths)}: {', '.join(paths)}")
        setattr(namespace, self.dest, paths[0] if len(paths) == 1 else paths)


class Size(argparse.Action):
    """Store a side, or height and width, of images."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Store one number or two."""
        if len(values) > 2 or (len(values) == 2 and None in values):
            given = " ".join(map(str, values))
            raise argparse.ArgumentError(self, f"expected a side, or height and width, got {given}")
        setattr(namespace, self.dest, values[0] if len(values) == 1 else tuple(values))


def size_argument(parser: Parser) -> None:
    """Add --image_size."""
    parser.add_argument(
        "--image_size",
        type=number_in(SIDE),
        nargs="+",
        action=Size,
        metavar="PIXELS",
        help="side, or height and width, of the images that the network sees, multiples of the patch size; positions "
        "are resized (default: that of RUN)",
    )


def view_arguments(parser: Parser) -> None:
    """Add --image_size and --blocks of a frozen encoder."""
    size_argument(parser)
    parser.add_argument(
        "--blocks",
        type=number("blocks"),
        nargs="+",
        default=(),
        metavar="K",
        help="blocks whose pooled outputs are put one after the other, from 1, or from -1 for the last one downwards "
        "(default: -1)",
    )


def device_arguments(parser: Parser, batch_size: int = 256) -> None:
    """Add --batch_size, --workers and --device."""
    parser.add_argument(
        "--batch_size",
        type=number("batch_size"),
        default=batch_size,
        metavar="N",
        help="images per batch (default: %(default)s)",
    )
    parser.add_argument(
        "--workers", type=workers, default="auto", metavar="N", help="processes that decode images (default: auto)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")


def image_arguments(parser: Parser, batch_size: int = 256, max_bad_fraction: float = 0.1) -> None:
    """Add the arguments of :func:`device_arguments`, and --max_bad_fraction."""
    device_arguments(parser, batch_size)
    parser.add_argument(
        "--max_bad_fraction",
        type=number("max_bad_fraction"),
        default=max_bad_fraction,
        metavar="X",
        help="largest fraction of images that may fail to decode; such files are logged and left out "
        "(default: %(default)s)",
    )


def weights_arguments(parser: Parser, weights: Sequence[str] = get_args(WeightsName)) -> None:
    """Add --weights, and the options of :class:`~hardpatch.choices.Architecture`."""
    if weights:
        parser.add_argument(
            "--weights",
            choices=weights,
            default="auto",
            help="weights of RUN to use; auto is the student, of checkpoints of DINO and iBOT the teacher "
            "(default: %(default)s)",
        )
    group = parser.add_argument_group("weights of other libraries, where neither they nor a config.json beside say it")
    group.add_argument("--heads", type=number("heads"), metavar="N", help="attention heads of the encoder")
    group.add_argument("--decoder_heads", type=number("decoder_heads"), metavar="N", help="likewise of the decoder")
    group.add_argument(
        "--trained_size",
        type=number("trained_size"),
        nargs=2,
        metavar=("H", "W"),
        help="size in pixels of the images that RUN was trained on",
    )


def architecture_of(options: argparse.Namespace) -> Architecture:
    """Take what the options of :func:`weights_arguments` say out of a namespace."""
    size = vars(options).pop("trained_size")
    return {
        "heads": vars(options).pop("heads"),
        "decoder_heads": vars(options).pop("decoder_heads"),
        "image_size": size and (size[0], size[1]),
    }


def normalize_argument(parser: Parser) -> None:
    """Add --normalize_pixels."""
    parser.add_argument(
        "--normalize_pixels",
        action="store_true",
        help="for reference checkpoints, which do not say: the targets were normalized patch by patch (norm_pix_loss)",
    )


def column_arguments(parser: Parser, columns: Sequence[str] = ("image", "label"), section: str = "") -> None:
    """Add --image_column and --label_column, or one of them; with a section, as of a setting, both ways to write it."""
    for what in columns:
        parser.add_argument(
            *dict.fromkeys((f"--{what}_column", f"--{section}{what}_column")),
            metavar="NAME",
            help=f"column of the {what}s in Parquet and CSV files (default: found by its name)",
        )


def number(name: str) -> Callable[[str], Any]:
    """Return a function that parses the number of an option, in its range of :data:`~hardpatch.ranges.OPTIONS`."""
    return number_in(OPTIONS[name])


def number_in(numbers: Range) -> Callable[[str], Any]:
    """Return a function that parses a number of a range."""

    def parse(text: str) -> Any:
        try:
            value = int(text) if numbers.whole else float(text)
        except ValueError:
            value = math.nan
        if value not in numbers:
            raise argparse.ArgumentTypeError(f"expected {numbers.words(value)}{numbers.note}, got {shown(text)}")
        return value

    return parse


def workers(text: str) -> Any:
    """Parse auto or a number of processes."""
    return text if text == "auto" else number("workers")(text)


def devices(text: str) -> int | str:
    """Parse auto or a whole number from 1."""
    if text != "auto" and (not text.isdecimal() or int(text) < 1):
        raise argparse.ArgumentTypeError(f"expected auto or a whole number from 1, got {shown(text)}")
    return text if text == "auto" else int(text)


def frozen_blocks(text: str) -> int | str:
    """Parse encoder or a number of blocks."""
    return text if text == "encoder" else int(number_in(FREEZE)(text))


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` to the file of --json.

    Raises:
        UserError: if the file cannot be written.
    """
    text = json.dumps(content, indent=2, default=str) + "\n"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() or not path.exists():
            write_text_atomically(path, text)
        else:  # a device or a pipe
            path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--json: cannot write {path}: {reason_of(error)}") from None


def json_argument(parser: Parser) -> None:
    """Add --json with or without a file."""
    parser.add_argument(
        "--json",
        metavar="FILE",
        nargs="?",
        const="-",
        help="print JSON and nothing else, or write it to this file, too; stands behind the images",
    )


def show_json(target: str | None, content: Any) -> bool:
    """Write or print what :func:`json_argument` asks for. Returns True if nothing else is to be printed."""
    if target == "-":
        print(json.dumps(content, indent=2, default=str))
    elif target is not None:
        write_json(Path(target), content)
    return target == "-"


def whole_set_arguments(parser: Parser) -> None:
    """Add the images, --workers, --json and the settings of reading of a verb that looks at all images of a set."""
    from hardpatch.configuration.config import add_data_settings
    from hardpatch.configuration.data_section import READING

    parser.add_argument("path", metavar="IMAGES", nargs="+", help="folders, files, Parquet files, demo:train")
    parser.add_argument(
        "--workers", type=workers, default="auto", metavar="N", help="processes that decode images (default: auto)"
    )
    json_argument(parser)
    add_data_settings(parser, READING)
