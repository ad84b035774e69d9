"""The version stands in three places, which agree."""

import re
from pathlib import Path

import yaml

from hardpatch import __version__

ROOT = Path(__file__).resolve().parents[1]


def test_the_version_is_that_of_the_changelog_and_the_citation() -> None:
    headings = re.findall(r"^## (\S+) \((\S+)\)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert headings[0] == (citation["version"], citation["date-released"])
    assert citation["version"] == __version__
