"""Values of annotation files, as labeling tools write them: numbers as text, whole numbers as floats, null."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hardpatch.data.names import some
from hardpatch.errors import UserError

NAMED = 8
"""Fields and classes that a line names."""


def refusal(subject: str, field: str, expected: str, value: Any) -> UserError:
    """Return the error for a value: file and entry, the field, what was expected, what it is."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        text = repr(value)
    except RecursionError:
        text = "values nested too deeply"
    text = text if len(text) <= 80 else f"{text[:77]}..."
    return UserError(f"{subject}: {field}: expected {expected}, got {text}")


def whole_number(value: Any) -> int | None:
    """Return 12 for 12, 12.0 or "12"; None if the value is no whole number."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    number_ = number(value)
    return int(number_) if number_ is not None and number_.is_integer() else None


def number(value: Any) -> float | None:
    """Return 1.5 for 1.5 or "1.5"; None if the value is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        parsed = float(value)
    except (ValueError, OverflowError):
        return None
    return parsed if math.isfinite(parsed) else None


def flag(value: Any) -> bool | None:
    """Return False for 0, 0.0, "0", "false", null; True for 1, 1.0, "1", "true"; None for anything else."""
    if value is None:
        return False
    if isinstance(value, str):
        value = {"true": 1, "false": 0}.get(value.strip().lower(), value)
    parsed = int(value) if isinstance(value, bool) else whole_number(value)
    return bool(parsed) if parsed in (0, 1) else None


def plural(count: int, noun: str) -> str:
    """Return "1 image", "2 images"; "box" becomes "boxes"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}{'es' if noun.endswith(('x', 's')) else 's'}"


def unused_fields(counts: Mapping[str, int]) -> list[str]:
    """Return a line about fields of objects that are not used, with the number of objects; none without such fields."""
    listed = [f"{name} ({plural(count, 'object')})" for name, count in counts.items()]
    return [f"fields that are not used: {some(listed, limit=NAMED)}"] if listed else []


def visible(folder: Path, suffix: str) -> Iterator[Path]:
    """Yield the files with this suffix at any depth below a folder, without hidden ones such as ``._a.xml``."""
    return (
        file
        for file in folder.rglob(f"*{suffix}")
        if not any(p.startswith(".") for p in file.relative_to(folder).parts)
    )
