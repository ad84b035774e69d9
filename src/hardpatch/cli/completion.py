"""Completion of the command line by a shell: ``hardpatch --print_completion bash``."""

import argparse
from collections.abc import Mapping
from importlib import import_module

from hardpatch.cli.arguments import ASKED, PATHS, Parser, ParserAsked
from hardpatch.errors import UserError, did_you_mean, shown

SHELLS = ("bash", "zsh", "fish")
NESTED = {"bench": ("data",), "study": ("fig2", "fig4", "figS1", "figS2")}
"""Words that may follow a verb and have options of their own."""
WITH_SETTINGS = ("pretrain", "plan", "bench", "study")
"""Verbs that take the settings of ``pretrain``."""


def script(shell: str, verbs: Mapping[str, str]) -> str:
    """Return the completion script of a shell, made by shtab.

    Args:
        shell: its name.
        verbs: modules of this package by verb.

    Raises:
        UserError: if there is none for this shell, or shtab is not installed.
    """
    if shell not in SHELLS:
        raise UserError(
            f"--print_completion: expected one of {', '.join(SHELLS)}, "
            f"got {shown(repr(shell))}{did_you_mean(shell, SHELLS)}"
        )
    try:
        import shtab
    except ImportError:
        raise UserError("--print_completion: needs a package: pip install shtab") from None
    return str(shtab.complete(_whole(verbs), shell=shell)) + "\n"


def _whole(modules: Mapping[str, str]) -> argparse.ArgumentParser:
    """Return one parser with the verbs as subparsers."""
    whole = argparse.ArgumentParser("hardpatch", description="Hard Patches Mining", allow_abbrev=False)
    whole.add_argument("-V", "--version", action="version", version="", help="print the version and exit")
    whole.add_argument("--print_completion", choices=SHELLS, help="print the completion script of a shell and exit")
    verbs = whole.add_subparsers()
    for verb, module in modules.items():
        parser = parser_of(verb, module)
        _complete(verb, module, parser)
        verbs.add_parser(verb, parents=[parser], add_help=False, help=parser.description)
    return whole


def parser_of(verb: str, module: str, *arguments: str) -> Parser:
    """Return the parser by which a verb of a module reads its command line, one that begins with ``arguments``."""
    try:
        getattr(import_module(f"hardpatch.cli.{module}"), verb)([*arguments, ASKED])
    except ParserAsked as asked:
        return asked.parser
    raise AssertionError(f"{verb} has no parser")


def _complete(verb: str, module: str, parser: Parser) -> None:
    """Add what can be completed to the parser of a verb, but is none of its choices: settings, paths, names."""
    import shtab

    from hardpatch.configuration import config
    from hardpatch.pretrain import recipes
    from hardpatch.study import rows

    known = parser._option_string_actions
    for word in NESTED.get(verb, ()):
        for action in parser_of(verb, module, word)._actions:
            if action.option_strings and not known.keys() & set(action.option_strings):
                parser._add_action(action)
    for name, choices in config.setting_choices().items() if verb in WITH_SETTINGS else ():
        short = f"--{name.split('.')[-1]}"
        both = [f"--{name}", *([short] if config.with_section(short) == f"--{name}" else [])]
        if free := [option for option in both if option not in known]:
            parser.add_argument(*free, choices=choices or None, metavar="X", help="setting of the training")
    for action in parser._actions:
        if action.option_strings == ["--recipe"] or (verb, action.dest) == ("recipes", "name"):
            action.choices = recipes.names()
        elif (verb, action.dest) == ("study", "table"):
            action.choices = ["plan", *NESTED["study"], "all", *rows.names()]
        elif action.metavar in PATHS:
            action.complete = shtab.DIRECTORY if action.metavar == "DIR" else shtab.FILE  # type: ignore[attr-defined]
