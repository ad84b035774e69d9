"""Files and folders whose names are no UTF-8, or hold line breaks, quotes and control characters."""

import logging
import os
import unicodedata
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hardpatch.cli import main
from hardpatch.data.sources import open_source
from hardpatch.printable import PrintableFormatter, printable
from tests.end_to_end.conftest import SMALL

ODD = [b"caf\xe9", b"two\nlines", b"quote\"'", b"bell\x07", "日本".encode()]
CPU = ["--device", "cpu", "--workers", "0"]


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    """Write class folders and images of odd names; one image is broken."""
    rng = np.random.default_rng(0)
    for name in ODD[:2]:
        folder = os.path.join(os.fsencode(tmp_path), b"images", name)
        os.makedirs(folder)
        for image in ODD:
            Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(
                os.fsdecode(folder + b"/" + image + b".png")
            )
    with open(os.path.join(folder, b"broken\xfc.png"), "wb") as file:
        file.write(b"no image")
    return tmp_path / "images"


def test_every_verb(odd: Path, run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    images, new = str(odd), str(tmp_path / "run")
    labeled = ["--train", images, "--val", images, "--max_bad_fraction", "0.5"]
    settings = ["--steps", "6", "--batch_size", "4", "--data.max_bad_fraction", "0.5"]
    assert main(["pretrain", *SMALL, *settings, "--data", images, "--out", new]) == 0
    assert "broken\\xfc.png" in (tmp_path / "run" / "log.txt").read_text()
    assert (tmp_path / "run" / "undecodable.txt").read_text().count("broken\\xfc.png") == 1
    assert main(["knn", str(run), *labeled, "--no_cache", *CPU]) == 0
    assert main(["embed", str(run), images, "--out", str(tmp_path / "e.parquet"), *CPU]) == 0
    names = pq.read_table(tmp_path / "e.parquet")["path"].to_pylist()
    assert sum("caf\\xe9/caf\\xe9.png" in name for name in names) == 1
    assert main(["score", str(run), images, "--out", str(tmp_path / "s"), "--draws", "4", *CPU]) == 0
    assert main(["shrink", images, "--side", "10", "--out", str(tmp_path / "small"), "--workers", "0"]) == 0
    assert main(["finetune", str(run), *labeled, "--out", str(tmp_path / "f"), "--epochs", "1",
                 "--warmup_epochs", "0", "--batch_size", "4", *CPU]) == 0  # fmt: skip
    assert main(["check", images]) in (0, 1)
    said = capfd.readouterr()
    for text in (said.out, said.err):
        assert "Traceback" not in text
        assert "Logging error" not in text
        assert "\x07" not in text


def test_accents_in_two_forms_are_one_class(tmp_path: Path) -> None:
    forms: tuple[Literal["NFC", "NFD"], ...] = ("NFC", "NFD")
    for number, form in enumerate(forms):
        folder = tmp_path / unicodedata.normalize(form, "caf\u00e9")
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
    (tmp_path / "tea").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "tea" / "x.png")
    source = open_source(tmp_path)
    assert source.classes == (unicodedata.normalize("NFC", "café"), "tea")
    assert sorted(source.label(i) or 0 for i in range(3)) == [0, 0, 1]


@given(st.binary(max_size=40).filter(lambda name: b"\0" not in name))
def test_names_become_a_line_of_text(name: bytes) -> None:
    line = printable(os.fsdecode(name))
    line.encode()
    assert len(line.splitlines()) <= 1
    assert all(character.isprintable() or character == " " or ord(character) > 127 for character in line)


def test_lines_of_the_log_keep_their_breaks() -> None:
    record = logging.LogRecord("hardpatch", logging.INFO, "", 0, "two\nlines \udce9\x1b", None, None)
    assert PrintableFormatter("%(message)s").format(record) == "two\nlines \\xe9\\x1b"
