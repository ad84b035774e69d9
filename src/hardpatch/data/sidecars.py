"""Labels in files beside the images of an archive, as WebDataset lays them out: `0001.jpg` with `0001.cls`."""

import json
from collections.abc import Container, Sequence

from hardpatch.data.columns import find_label
from hardpatch.errors import UserError

SIDECARS = (".cls", ".json")


def sidecars_of(image: str, texts: Container[str]) -> list[str]:
    """Return the files with labels beside an image: of the same name without its suffix, or up to its first point."""
    slash = image.rfind("/") + 1
    stems = {image[: image.rfind(".")]: None, image[: image.find(".", slash)]: None}
    return [name for stem in stems for ending in SIDECARS if (name := f"{stem}{ending}") in texts]


def label_key(keys: Sequence[str], listed: Sequence[str], key: str | None, where: str) -> tuple[str | None, str]:
    """Return the key of the labels, None if there are none, and in that case why they cannot be told.

    Args:
        keys: those with values, sorted; that of `.cls` files is empty.
        listed: all keys of the `.json` files, for messages.
        key: the one that is asked for; None takes that of the `.cls` files, or finds one.
        where: the archive, for messages.

    Raises:
        UserError: if no file has the key that is asked for.
    """
    if key is not None:
        if key not in keys:
            names = ", ".join(filter(None, listed)) or "none"
            raise UserError(f"--label_column: {where} has no .json with the key {key!r}; the keys are {names}")
        return key, ""
    if "" in keys:
        return "", ""
    found = find_label(keys)
    reason = found.reason.replace("columns", "keys of the .json files")
    return found.name, f"{where}: {reason}" if reason else ""


def parsed(name: str, content: bytes) -> dict[str, str]:
    """Return the labels in a file by key: the text of a `.cls`, with an empty key, or a JSON object's plain values."""
    text = content.decode("utf-8", errors="replace").strip()
    if name.endswith(".cls"):
        return {"": text}
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(values, dict):
        return {}
    plain = {key: value for key, value in values.items() if isinstance(value, str | int | float) and key}
    return {key: _as_text(value) for key, value in plain.items()}


def _as_text(value: str | float) -> str:
    return value if isinstance(value, str) else json.dumps(value)
