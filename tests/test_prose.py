"""Text that people read: American spelling, short lines of Markdown, first words of docstrings."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("src", "tests", "docs", "examples", "benchmarks", ".github")

BRITISH = re.compile(
    r"""(?<![a-z])(?:
        \w*(?:normal|initial|optim|standard|random|regular|visual|quant|token|summar|general|special|polar|poster|
           synchron|serial|vector|minim|maxim|real|local|equal|util|character|emphas|parallel|parametr|penal|binar|
           categor|organ|recogn)is(?:e[ds]?|es|ing|er|ers|ation|ations)
        |\w*analys(?:e|ed|er|ing)
        |\w*colour\w* | \w*behaviour\w* | \w*neighbour\w* | \w*favour\w* | \w*honour\w* | \w*labour\w*
        |(?<!class_)(?<!patch_)centr(?:e|es|ed|ing)
        |\w*grey\w* | \w*licence\w* | \w*defence\w* | \w*artefact\w* | catalogue\w* | judgement\w* | fulfil
        |(?:un)?labell\w+ | modell\w+ | cancell(?:ed|ing) | travell\w+ | signall\w+
        |learnt | spelt | burnt | whilst | amongst
        )(?![a-z])""",
    re.VERBOSE | re.IGNORECASE,
)
"""British spellings. ``class_centre`` and ``patch_centre`` are names of weights in iBOT's checkpoints."""

OLD_NAMES = ROOT / "src/hardpatch/configuration/upgrade.py"
"""Maps British names of settings to their American ones."""

LINK_ALONE = re.compile(r"(?:[-*] )?!?\[[^\]]*\]\([^)]*\)[.,;]?")
RIDDLES = re.compile(r"(?:What|How|Whose|Of|Whether)\b")


def files(*suffixes: str) -> Iterator[Path]:
    """Files of the checkout that people write, without what tools put beside them."""
    for path in [*ROOT.iterdir(), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*"))]:
        if path.suffix in suffixes and path.is_file() and path != Path(__file__):
            yield path


def prose_lines(text: str) -> Iterator[tuple[int, str]]:
    """Numbered lines of Markdown without tables, code blocks and lines that hold one link alone."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not (fenced or line.startswith(("|", "    ")) or LINK_ALONE.fullmatch(line.strip())):
            yield number, line


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Numbered docstrings of a module, its classes and functions, and of attributes: strings that stand alone."""
    for node in ast.walk(tree):
        match node:
            case ast.Expr(ast.Constant(str(text))):
                yield node.lineno, text


def test_lines_of_markdown_are_short() -> None:
    long = [
        f"{path.relative_to(ROOT)}:{number}: {len(line)} characters"
        for path in files(".md")
        for number, line in prose_lines(path.read_text(encoding="utf-8"))
        if len(line) >= 120
    ]
    assert not long, "\n".join(long)


def test_spelling_is_american() -> None:
    british = [
        f"{path.relative_to(ROOT)}:{number}: {match.group()}"
        for path in files(".py", ".md", ".yaml", ".yml", ".toml", ".cff", ".sh")
        if path != OLD_NAMES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        for match in BRITISH.finditer(line)
    ]
    assert not british, "\n".join(british)


def test_docstrings_name_the_thing_first() -> None:
    riddles = [
        f"{path.relative_to(ROOT)}:{number}: {text.strip().splitlines()[0]}"
        for path in files(".py")
        if path.is_relative_to(ROOT / "src")
        for number, text in docstrings(ast.parse(path.read_text(encoding="utf-8")))
        if RIDDLES.match(text.strip())
    ]
    assert not riddles, "\n".join(riddles)


def test_these_tests_can_fail() -> None:
    words = "initialised colour_jitter neighbours centre Normalisation unlabelled grey learnt optimisers ColourJitter"
    assert len(BRITISH.findall(words)) == len(words.split())
    american = "class_centre patch_centre analysis minimal optimistic organism precise realism noise raise centroid"
    assert not BRITISH.findall(american)
    markdown = "prose\n| table |\n```\ncode\n```\n    code\n- [link](address)\n[link](address) and prose"
    assert [line for _, line in prose_lines(markdown)] == ["prose", "[link](address) and prose"]
    module = ast.parse('"""Module."""\nx = 1\n"""Attribute."""\ndef f(): "Function."')
    assert sorted(text for _, text in docstrings(module)) == ["Attribute.", "Function.", "Module."]
