"""Sheets that are watched while they are drawn: nothing may cover anything else or leave the sheet."""

from typing import Any, NamedTuple

import numpy as np
import pytest

from hardpatch.figures import Image, Sheet


class Drawn(NamedTuple):
    """Everything that was put on sheets, in the order of drawing."""

    texts: list[str]
    pictures: list[Image]


def watch(monkeypatch: pytest.MonkeyPatch) -> Drawn:
    """Check from now on that each text and picture goes where the sheet is white, and that no text is cut."""
    drawn = Drawn([], [])
    write, place = Sheet.write, Sheet.place

    def checked_write(sheet: Sheet, text: str, *args: Any) -> None:
        before = np.array(sheet.image)
        write(sheet, text, *args)
        rows, columns = np.nonzero((np.asarray(sheet.image) != before).any(axis=-1))
        drawn.texts.append(text)
        if not text:
            assert not len(rows)
            return
        top, bottom, left, right = rows.min(), rows.max(), columns.min(), columns.max()
        assert (before[top : bottom + 1, left : right + 1] == 255).all(), text
        assert min(top, left) > 0, text
        assert bottom < before.shape[0] - 1, text
        assert right < before.shape[1] - 1, text

    def checked_place(sheet: Sheet, picture: Image, *args: Any) -> tuple[int, int, int, int]:
        before = np.array(sheet.image)
        left, top, width, height = place(sheet, picture, *args)
        drawn.pictures.append(picture)
        covered = before[top : top + height, left : left + width]
        assert covered.shape == (height, width, 3)
        assert (covered == 255).all()
        return left, top, width, height

    monkeypatch.setattr(Sheet, "write", checked_write)
    monkeypatch.setattr(Sheet, "place", checked_place)
    return drawn
