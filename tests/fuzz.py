"""Rotten files for the tests named test_fuzz_*; ``make fuzz`` runs them for longer."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from hardpatch.data.reading import UndecodableImage
from hardpatch.errors import UserError

T = TypeVar("T")

EXAMPLES = int(os.environ.get("HARDPATCH_FUZZ", "60"))
"""Examples of each of these tests."""

fuzz_settings = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))


def outcome(work: Callable[[], T], name: str | Path = "") -> T | None:
    """Return what comes of a file, None for an error of this project that names it; others are raised."""
    try:
        return work()
    except (UserError, UndecodableImage) as error:
        if str(name) not in str(error):
            raise
        return None


@st.composite
def mutated(draw: st.DrawFn, contents: list[bytes]) -> bytes:
    """Return one of the files with some bytes changed, left out, repeated or cut off."""
    data = bytearray(draw(st.sampled_from(contents)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        # the start of a file is its header, where a change does most
        at = at if draw(st.booleans()) else at % 64
        kind = draw(st.sampled_from(("byte", "byte", "word", "zeros", "cut", "repeat", "drop")))
        length = draw(st.integers(1, 64))
        if kind == "byte":
            data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
        elif kind == "word":
            data[at : at + 4] = draw(
                st.sampled_from((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\x80", b"\0\0\0\1"))
            )
        elif kind == "zeros":
            data[at : at + length] = bytes(length)
        elif kind == "cut":
            del data[at:]
        elif kind == "repeat":
            data[at:at] = data[at : at + length]
        else:
            del data[at : at + length]
    return bytes(data)
