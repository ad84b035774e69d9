"""Commands that the documentation shows."""

import re
import shlex
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
BLOCK = re.compile(r"^ *```([^\n`]*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
"""Any block: its language, and what it holds."""
SHELL = ("", "bash", "console", "sh")
INLINE = re.compile(r"(?<!`)`(hardpatch [^`]+)`(?!`)")
START = re.compile(r"^(?:\$ )?(?:torchrun .* -m |srun )?hardpatch (?=[a-z])(?!\w+:)")
PLACEHOLDERS = re.compile(r"\$|\.\.\.|[\[\]|]|\b(?:VERB|NAME|SEED|H|S|MS|MB)\b|step_\*")
"""What a command has whose reader has to replace parts of it."""


class Command(NamedTuple):
    """A command line of ``hardpatch`` on a page."""

    page: str
    text: str
    shown: bool
    """in a block of its own, not in running text"""

    @property
    def arguments(self) -> list[str]:
        """Words after ``hardpatch``, without comments and what is written to a file."""
        words = shlex.split(START.sub("", self.text), comments=True)
        return words[: words.index(">")] if ">" in words else words

    @property
    def complete(self) -> bool:
        """Whether it can be typed as it is."""
        return PLACEHOLDERS.search(re.sub(r"^\$ |\s#.*|'[^']*'", "", self.text)) is None


def commands() -> list[Command]:
    """Return all commands of the pages."""
    found = []
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        for block in (block for language, block in BLOCK.findall(text) if language in SHELL):
            lines = [line.strip() for line in re.sub(r"\\\n\s*", " ", block).splitlines()]
            if any(line.startswith("$ ") for line in lines):  # the others are what was printed
                lines = [line for line in lines if line.startswith("$ ")]
            found += [Command(path.name, line, True) for line in lines if START.match(line)]
        inline = INLINE.findall(BLOCK.sub("", text))
        found += [Command(path.name, " ".join(code.split()), False) for code in inline if START.match(code)]
    return found


def python_blocks() -> list[tuple[str, str]]:
    """Return the blocks of Python of all pages, each with the name of its page."""
    found = []
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        found += [
            (path.name, textwrap.dedent(block)) for language, block in BLOCK.findall(text) if language == "python"
        ]
    return found
