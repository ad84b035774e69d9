"""The table of docs/resume.md names what a resumed run may change, as the code has it."""

import re
from pathlib import Path

from hardpatch.configuration.config import setting_names
from hardpatch.pretrain.folder import FREE_TO_CHANGE as FREE_IN_PRETRAIN
from hardpatch.train.moved import MOVABLE
from hardpatch.train.resume import LENGTH, MAY_CHANGE, PEAK
from hardpatch.train.settings import FREE_TO_CHANGE

PAGE = Path(__file__).resolve().parents[2] / "docs" / "resume.md"
WRITTEN = {"extensions", "least_steps"}
"""Settings that follow from the length"""


def columns() -> tuple[set[str], set[str]]:
    """Return the settings of pretrain and of the other verbs that the table names."""
    table = PAGE.read_text(encoding="utf-8").split("## What may change")[1].split("\n\n")[1]
    rows = [line.strip("|").split("|") for line in table.splitlines()[2:]]
    one, other = ({name for row in rows for name in re.findall(r"`([^`]+)`", row[k])} for k in (1, 2))
    return one, other


def test_the_table_is_that_of_the_code() -> None:
    one, other = columns()
    sections = {name: names for name, names in setting_names().items() if name}
    every = {f"{section}.{name}" for section, names in sections.items() for name in names}
    every |= set(setting_names()[""]) - sections.keys()
    named = set(LENGTH) | {name for name in PEAK if "." in name}
    allowed = {name for name in every if name.startswith(FREE_IN_PRETRAIN) or name in named or name == "data.path"}
    expanded = {name for name in every if name in one or f"{name.split('.')[0]}.*" in one}
    assert expanded == allowed - WRITTEN
    assert all(name in every or name.removesuffix(".*") in sections for name in one)
    assert other == ({*FREE_TO_CHANGE, *LENGTH, *MOVABLE} | {name for name in PEAK if "." not in name}) - WRITTEN


def test_the_refusal_names_the_rows() -> None:
    for words in ("length (--epochs or --steps)", "peak learning rate", "place of the images", "precision", "checks"):
        assert words in MAY_CHANGE
