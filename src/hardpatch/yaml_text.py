"""The one reader of YAML, for text that others wrote: quick, of little memory, and every mistake is one line."""

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from hardpatch.errors import UserError, shown

MAX_BYTES = 1_000_000
"""Length of a file, far above that of any settings or list of class names."""
MAX_VALUES = 100_000
"""Values in a text, those that aliases repeat counted each time."""
LARGEST = 10**100
"""Whole number that every kind of setting can at least be compared with; larger ones are no floats."""
MAX_DEPTH = 32
"""Lists and mappings within each other."""
BRACKETS = re.compile(rf"(?:[\[{{]\s*+){{{MAX_DEPTH + 1}}}")
"""Opening brackets of lists and mappings within each other."""
TAGS = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "seq", "map")}
"""Types that may be named in the text; no other is ever made."""
BROKEN = (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""Errors of PyYAML: most are its own, but a date in month 13 or ``!!int x`` raise others."""


class WordLoader(yaml.SafeLoader):
    """Loader that reads yes, no, on and off as words, like YAML 1.2; only true and false are booleans."""


WordLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool" or first in "tTfF"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(path: str | Path, option: str, *, words: bool = False) -> Any:
    """Read a YAML file.

    Args:
        path: the file.
        option: argument that names the file, for messages.
        words: read yes, no, on and off as words.

    Raises:
        UserError: if the file cannot be read, or is not YAML as :func:`parse_yaml` takes it.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(f"{option}: cannot read {path}: {error.strerror}") from None
    except ValueError as error:  # a null character in the path
        raise UserError(f"{option}: cannot read {shown(str(path))}: {error}") from None
    if len(content) > MAX_BYTES:
        raise UserError(f"{option}: expected at most {MAX_BYTES / 1e6:g} MB of YAML, {path} is longer")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{option}: {path} is not YAML: it is not UTF-8 text, {error.reason}") from None
    return parse_yaml(text, f"{option}: {path}", words=words)


def parse_yaml(text: str, source: str, *, words: bool = False) -> Any:
    """Return the value of a YAML text.

    Args:
        text: the text.
        source: where it comes from, for messages.
        words: read yes, no, on and off as words.

    Raises:
        UserError: if it is not YAML, has aliases that expand to too many values or contain themselves, is nested too
            deep, or names a type that is not plain.
    """
    try:
        _refuse_bombs(text, source, plain=True)
        return yaml.load(text, WordLoader if words else yaml.SafeLoader)
    except UserError:
        raise
    except BROKEN as error:
        raise UserError(f"{source} is not YAML: {shown(str(error))}") from None


def read_settings(path: str | Path, option: str, *, words: bool = False) -> dict[str, Any]:
    """Read a YAML file of settings: a mapping whose names, at every depth, are text.

    Raises:
        UserError: as :func:`read_yaml`, or if it holds something else.
    """
    values = read_yaml(path, option, words=words)
    if not isinstance(values, dict):
        got = "an empty file" if values is None else type(values).__name__
        raise UserError(f"{option}: expected settings in {path}, got {got}")
    check_keys(values, f"{option}: {path}")
    return values


def check_keys(value: Any, source: str) -> None:
    """Refuse a mapping with a name that is no text, at any depth.

    Raises:
        UserError: shows the first such name.
    """
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise UserError(f"{source}: expected names of settings, got {shown(repr(key))}; quote it if it is one")
            check_keys(item, source)
    elif isinstance(value, list):
        for item in value:
            check_keys(item, source)


def check_value(value: Any, name: str) -> None:
    """Refuse a text of a setting that the parser of settings reads as YAML, if that would take much time or memory.

    Args:
        value: the text, or lists and mappings of texts.
        name: of the setting.

    Raises:
        UserError: as :func:`parse_yaml`; a text that is no YAML, as many a path, is none of its business.
    """
    if isinstance(value, str):
        with suppress(yaml.YAMLError):
            _refuse_bombs(value, name, plain=False)
    elif isinstance(value, int) and abs(value) > LARGEST:
        raise UserError(f"{name}: expected a number of at most 100 digits, got one of more")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            check_value(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for item in value:
            check_value(item, name)


def flat(nested: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings by dotted name."""
    values: dict[str, Any] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            values |= {f"{key}.{name}": item for name, item in value.items()}
        else:
            values[key] = value
    return values


def _refuse_bombs(text: str, source: str, *, plain: bool) -> None:
    """Walk over a YAML text without building its value; `plain` also refuses types that are named."""
    deep = f"{source}: expected at most {MAX_DEPTH} lists within each other, got more"
    if BRACKETS.search(text):  # which take PyYAML a time that is their number squared
        raise UserError(deep)
    sizes: dict[str, int] = {}
    """values below each anchor that is complete"""
    opened: list[tuple[str | None, int]] = [(None, 0)]
    """anchor and number of values of each list and mapping that is open"""
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        size = 0
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in (anchor for anchor, _ in opened):
                raise UserError(f"{source}: expected plain values, got *{event.anchor}, which contains itself")
            size = sizes.get(event.anchor or "", 1)
        elif isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            named = event.tag or ""
            if (plain and named and named not in TAGS) or (not plain and named.startswith("tag:yaml.org")):
                raise UserError(f"{source}: expected plain values, got one of type {shown(event.tag)}")
            if isinstance(event, yaml.CollectionStartEvent):
                opened.append((event.anchor, 1))
            else:
                size = 1
                if event.anchor:
                    sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, size = opened.pop()
            if anchor:
                sizes[anchor] = size
        opened[-1] = (opened[-1][0], opened[-1][1] + size)
        if len(opened) > MAX_DEPTH:
            raise UserError(deep)
        if opened[-1][1] > MAX_VALUES:
            raise UserError(f"{source}: expected at most {MAX_VALUES:,} values, got more, with its aliases written out")
