"""YAML that others wrote is read quickly, or refused in one line."""

import contextlib
import tracemalloc
from pathlib import Path
from time import process_time
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hardpatch.detect.yolo import _names
from hardpatch.errors import UserError
from hardpatch.pretrain import recipes
from hardpatch.study.suite import read_suite
from hardpatch.train.run_folder import read_values
from hardpatch.yaml_text import check_value, parse_yaml, read_settings, read_yaml

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + k)}: &{chr(98 + k)} [{','.join([f'*{chr(97 + k)}'] * 9)}]\n" for k in range(7)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{chr(98 + k)}: &{chr(98 + k)} {{p: [{','.join([f'*{chr(97 + k)}'] * 9)}]}}\n" for k in range(7)
)
BAD = {
    "alias bomb": (BOMB.encode(), "at most 100,000 values"),
    "bomb of mappings": (MERGES.encode(), "at most 100,000 values"),
    "contains itself": (b"a: &a [*a]\n", r"\*a, which contains itself"),
    "5,000 brackets": (b"a: " + b"[" * 5000, "at most 32 lists within each other"),
    "5,000 mappings": (b"{a: " * 5000, "at most 32 lists within each other"),
    "a type of Python": (b"a: !!python/object/apply:os.system [ls]\n", "plain values, got one of type"),
    "a type of its own": (b"a: !Ref x\n", "plain values, got one of type !Ref"),
    "a tab": (b"a:\n\tb: 1\n", "is not YAML"),
    "binary": (bytes(range(256)), "is not YAML"),
    "null characters": (b"a: \x00\n", "is not YAML"),
    "Latin-1": ("a: \u00e9\n".encode("latin-1"), "is not YAML: it is not UTF-8 text"),
    "UTF-16": ("a: 1\n".encode("utf-16"), "is not YAML: it is not UTF-8 text"),
    "month 13": (b"a: 2024-13-45\n", "is not YAML: month must be in 1..12"),
    "a number of 5,000 digits": (b"a: " + b"9" * 5000, "is not YAML: Exceeds the limit"),
    "no number": (b"a: !!int x\n", "is not YAML"),
    "no truth value": (b"a: !!bool x\n", "is not YAML"),
    "two documents": (b"a: 1\n---\nb: 2\n", "is not YAML"),
    "long": (b"a: " + b"x" * 1_000_001, "at most 1 MB"),
}
NO_SETTINGS = {
    "empty": (b"", "expected settings in .*, got an empty file"),
    "a list": (b"- a\n", "expected settings in .*, got list"),
    "a number": (b"3\n", "expected settings in .*, got int"),
    "names that are numbers": (b"1: 2\n", "expected names of settings, got 1; quote it"),
    "such names below": (b"model: {1: 2}\n", "expected names of settings, got 1; quote it"),
    "names that are nothing": (b"~: 2\n", "expected names of settings, got None"),
}


@pytest.mark.parametrize(("content", "message"), [*BAD.values(), *NO_SETTINGS.values()], ids=[*BAD, *NO_SETTINGS])
def test_bad_files_are_refused_quickly_in_one_line(content: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(content)
    readers: list[tuple[str, Any]] = [
        ("--config", lambda: recipes.read_file(file)),
        ("--out", lambda: read_values(tmp_path)),
    ]
    if content in [content for content, _ in BAD.values()]:
        readers += [("--suite", lambda: read_suite(file)), ("--annotations", lambda: read_yaml(file, "--annotations"))]
    for option, read in readers:
        tracemalloc.start()
        started = process_time()
        with pytest.raises(UserError, match=f"^{option}: .*{message}") as caught:
            read()
        assert process_time() - started < 2
        assert tracemalloc.get_traced_memory()[1] < 20e6
        tracemalloc.stop()
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 400


def test_a_bomb_is_small() -> None:
    assert len(BOMB) < 320


def test_a_bad_file_of_yolo_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "data.yaml"
    for content, message in (BAD["alias bomb"], BAD["5,000 brackets"], BAD["month 13"]):
        file.write_bytes(content)
        with pytest.raises(UserError, match=message):
            _names(file)
    file.write_text("names: {0: person, 1: dog}\n")  # whose names are numbers by right
    assert _names(file) == (["person", "dog"], 0)


def test_aliases_of_a_reasonable_size_are_read(tmp_path: Path) -> None:
    text = "common: &c {batch_size: 4}\nknn: {<<: *c, k: [1, 2]}\nagain: *c\n"
    file = tmp_path / "a.yaml"
    file.write_text(text, encoding="utf-8-sig")  # with the mark that Windows writes
    expected = {"common": {"batch_size": 4}, "knn": {"batch_size": 4, "k": [1, 2]}, "again": {"batch_size": 4}}
    assert read_settings(file, "--config") == expected == yaml.safe_load(text)


def test_files_that_cannot_be_opened(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing", "a\0b"):
        with pytest.raises(UserError, match=r"^--config: cannot read "):
            read_yaml(path, "--config")


def test_values_of_settings() -> None:
    bad: list[Any] = ["[" * 5000, "{a: " * 5000, "&a [*a]", BOMB, "!!timestamp x", {"x": ["[" * 99]}, 10**101]
    for value in bad:
        with pytest.raises(UserError, match=r"^data\.bands(\.x)?: expected "):
            check_value(value, "data.bands")
    good: list[Any] = ["*_B04.tif", "!important/images", "a: b: c", "[a", "@x", "", "\t", "{}", 3, None, ["&x"]]
    for value in good:
        check_value(value, "data.bands")


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False)
    | st.text("ab: -", max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", min_size=1), inner, max_size=3),
    max_leaves=8,
)


@given(PLAIN)
@settings(max_examples=50)
def test_what_was_written_is_read(value: Any) -> None:
    assert parse_yaml(yaml.safe_dump(value), "x") == value


@given(st.text("[]{}&*!:-,? \n\tab01.~'\"|>%@`#<", max_size=40))
@settings(max_examples=200)
def test_any_text_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(UserError):
        parse_yaml(text, "x")
