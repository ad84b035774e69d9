"""The help of every verb: complete, readable and fast to reach."""

import re
from dataclasses import fields, is_dataclass

import pytest

from hardpatch.cli import VERBS, main
from hardpatch.configuration.config import MAIN_SETTINGS
from hardpatch.configuration.sections import RunConfig

WIDTH = 80


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fix the width that argparse formats for."""
    monkeypatch.setenv("COLUMNS", str(WIDTH))


def show(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Print a help text and return it, with exit code 0 or SystemExit(0)."""
    try:
        code: object = main(arguments)
    except SystemExit as end:
        code = end.code
    assert code == 0
    return capsys.readouterr().out


def options(text: str) -> set[str]:
    return set(re.findall(r"^  --([a-z_.]+)", text, re.MULTILINE))


OWN = {"hours", "recipe", "config", "data", "init", "out", "resume", "json", "display", "print_config"}
"""Options of pretrain that are not settings."""


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_pretrain_shows_the_main_settings(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = show(capsys, "pretrain", flag)
    assert len(MAIN_SETTINGS) == 15
    assert options(text) == OWN | set(MAIN_SETTINGS)
    assert "All settings, by section: hardpatch pretrain --help all. " in text
    assert "(mae | simmim | beit | ibot; default: mae)" in " ".join(text.split())


def test_pretrain_help_all_shows_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    text = show(capsys, "pretrain", "--help", "all")
    settings = set()
    for field in fields(RunConfig):
        part = getattr(RunConfig(), field.name)
        settings |= {f"{field.name}.{each.name}" for each in fields(part)} if is_dataclass(part) else {field.name}
    assert len(settings) > 70
    assert options(text) == OWN | settings
    entries = re.split(r"\n(?=  --)", text[text.index("\nrun:") :])[1:]
    assert len(entries) == len(settings)
    assert all("default:" in entry for entry in entries)


@pytest.mark.parametrize("verb", [*VERBS, "pretrain all", "bench data"])
def test_lines_fit_a_terminal(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    name, *rest = verb.split()
    text = show(capsys, name, *rest, "--help") if rest == ["data"] else show(capsys, name, "--help", *rest)
    assert text.startswith("usage: hardpatch ")
    assert [line for line in text.splitlines() if len(line) > WIDTH] == []


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "recipes"])
def test_every_option_has_a_help_text(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    text, _, examples = show(capsys, verb, "--help").partition("\nexamples:\n")
    assert len(re.findall(r"^  hardpatch ", examples, re.MULTILINE)) == 2
    entries = re.split(r"\n(?=  \S)", text[text.index("\noptions:") :])[1:]
    for entry in entries:
        body = entry.split("\n\n")[0].strip()
        assert re.search(r"\s{2,}\S", body), f"{verb}: no help text for {body}"
