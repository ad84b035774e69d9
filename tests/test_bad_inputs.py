"""Each row of docs/bad-inputs.md names a test that exists, as does each promise of docs/reliability.md."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def rows(page: str) -> list[list[str]]:
    """Return the cells of all tables of a page, without their heads."""
    lines = (ROOT / "docs" / page).read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return [row for row in cells if row[0] not in ("input", "---")]


def test_each_bad_input_has_a_test() -> None:
    table = rows("bad-inputs.md")
    assert len(table) >= 60
    assert len({row[0] for row in table}) == len(table)
    for row in table:
        assert len(row) == 3, row
        match = re.fullmatch(r"`(tests/\S+\.py)::(test_\w+)`", row[2])
        assert match, row
        tree = ast.parse((ROOT / match[1]).read_text(encoding="utf-8"))
        assert match[2] in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, row
