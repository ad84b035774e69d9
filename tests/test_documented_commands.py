"""Every command in the documentation is one that the program understands: verbs, options, values, settings, recipes."""

import argparse
import ast
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from typing import Any

import pytest

import hardpatch
from hardpatch.bench import contenders
from hardpatch.cli import VERBS, main
from hardpatch.cli.arguments import Parser
from hardpatch.configuration import config
from hardpatch.pretrain import recipes
from hardpatch.study import rows
from tests.documented import Command, commands, python_blocks

COMMANDS = commands()


class Understood(BaseException):
    """A command line was parsed."""


LISTED: dict[str, tuple[str, Callable[[], Iterable[str]]]] = {
    "recipes": ("name", recipes.names),
    "bench": ("contenders", lambda: (*contenders.NAMES, *recipes.names())),
    "study": ("table", lambda: ("all", *rows.names())),
}
"""The argument of a verb that is a name, or several after commas, and the names that there are."""


def names_are_known(program: list[str], parsed: argparse.Namespace) -> None:
    """Check names that a verb looks up when it runs."""
    argument, known = LISTED.get(program[0], ("", tuple))
    given = getattr(parsed, argument, None) or ()
    given = given.split(",") if isinstance(given, str) else given
    assert set(given) <= set(known()), f"{argument}: {given}"


def stop_after_parsing(monkeypatch: pytest.MonkeyPatch, *, partly: bool) -> None:
    """Let every verb parse its command line, and do nothing else; ``partly`` lets required arguments be missing."""
    parse_args, parse_with_settings = Parser.parse_args, Parser.parse_with_settings

    def parsed(self: Parser, arguments: Any = None, namespace: Any = None) -> Any:
        for action in self._actions if partly else ():
            action.required = False
            if not action.option_strings:
                action.nargs = "*"
        names_are_known(self.prog.split()[1:], parse_args(self, arguments, namespace))
        raise Understood

    def parsed_with_settings(self: Parser, arguments: Sequence[str]) -> Any:
        own, settings = parse_with_settings(self, arguments)
        names_are_known(self.prog.split()[1:], own)
        recipe = getattr(own, "recipe", None)
        if isinstance(recipe, str):
            config.build(recipes.read(recipe), settings)
        config.given(settings)
        raise Understood

    monkeypatch.setattr(Parser, "parse_args", parsed)
    monkeypatch.setattr(Parser, "parse_with_settings", parsed_with_settings)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.page}: {command.text}")
def test_a_command_is_understood(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not command.complete:
        verb = command.arguments[0]
        assert verb in VERBS or verb == "VERB"
        return
    stop_after_parsing(monkeypatch, partly=not command.shown)
    try:
        code = main(command.arguments)
    except (Understood, SystemExit):  # the second after --help
        return
    said = capsys.readouterr().err
    assert code == 0, said


def test_commands_to_be_completed_are_few() -> None:
    """Blocks hold commands that can be typed; those of measurements have variables of the shell."""
    unfinished = {command.page for command in COMMANDS if command.shown and not command.complete}
    assert unfinished <= {"results.md", "export.md", "finetuning.md", "detection.md"}


def test_every_verb_is_documented() -> None:
    assert {command.arguments[0] for command in COMMANDS} >= set(VERBS)


def names_of(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Yield what a block takes from ``hardpatch``: (module, name)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "hardpatch":
            yield from ((node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "hardpatch":
            yield "hardpatch", node.attr


@pytest.mark.parametrize(("page", "block"), python_blocks())
def test_python_compiles_and_its_names_exist(page: str, block: str) -> None:
    for module, name in names_of(ast.parse(block)):
        assert hasattr(hardpatch if module == "hardpatch" else import_module(module), name), f"{page}: {module}.{name}"
