"""Labels in files beside the images of an archive, as WebDataset lays them out: `0001.jpg` with `0001.cls`."""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hardpatch.data.classes import Labels, from_values
from hardpatch.data.columns import find_label
from hardpatch.errors import UserError

SIDECARS = (".cls", ".json")
Fields = Mapping[str, str]
"""Labels of one image by name; that of a `.cls` has the empty name."""


class SidecarLabels(NamedTuple):
    """Labels, and the files that they are from."""

    labels: Labels
    where: str


class Sidecars:
    """Files with labels of one archive, by their names. Notes which of them belong to an image."""

    def __init__(self, texts: Mapping[str, bytes]) -> None:
        self._texts, self._used = texts, set[str]()

    def of(self, image: str) -> Fields:
        """Return the labels beside an image: of the same name without its suffix, or up to its first point."""
        folder, slash, file = image.rpartition("/")
        fields: dict[str, str] = {}
        for stem in dict.fromkeys((file.rpartition(".")[0], file.split(".", 1)[0])):
            for ending in SIDECARS:
                name = f"{folder}{slash}{stem}{ending}"
                if name in self._texts:
                    self._used.add(name)
                    fields = {**_parsed(ending, self._texts[name]), **fields}
        return fields

    def used(self, name: str) -> bool:
        """Return whether a file belongs to an image."""
        return name in self._used


def sidecar_labels(images: Sequence[Fields], key: str | None, where: str) -> SidecarLabels | str | None:
    """Return the labels of images, None if no file has any, or why they cannot be told.

    Args:
        images: what lies beside each image.
        key: of the labels in the `.json` files; None takes those of the `.cls` files, or finds the key.
        where: the archive, for messages.

    Raises:
        UserError: if no file has the key.
    """
    keys = sorted({name for fields in images for name in fields})
    if key is not None:
        if key not in keys:
            listed = ", ".join(filter(None, keys)) or "none"
            raise UserError(f"--label_column: {where} has no .json with the key {key!r}; the keys are {listed}")
    elif "" in keys:
        key = ""
    else:
        found = find_label(keys)
        if found.name is None:
            reason = found.reason.replace("columns", "keys of the .json files")
            return f"{where}: {reason}" if reason else None
        key = found.name
    values = [fields.get(key) for fields in images]
    return SidecarLabels(from_values(values), f"the key {key!r} of the .json files" if key else ".cls files")


def _parsed(ending: str, content: bytes) -> dict[str, str]:
    """Return the labels in a file: one line of text, or the plain values of a JSON object."""
    text = content.decode("utf-8", errors="replace").strip()
    if ending == ".cls":
        return {"": text}
    try:
        values = json.loads(text)
    except ValueError:
        return {}
    if not isinstance(values, dict):
        return {}
    plain = {key: value for key, value in values.items() if isinstance(value, str | int | float) and key}
    return {key: _as_text(value) for key, value in plain.items()}


def _as_text(value: str | float) -> str:
    return value if isinstance(value, str) else json.dumps(value)
