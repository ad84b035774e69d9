"""Configuration of a run: parsed from YAML and the command line, checked once, and saved in the run folder.

This module does not import torch, so that ``--help`` is fast.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, fields, is_dataclass
from functools import cache, lru_cache
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser, set_parsing_settings

from hardpatch.configuration.checks import check
from hardpatch.configuration.sections import RunConfig
from hardpatch.configuration.upgrade import hint
from hardpatch.errors import UserError, did_you_mean, one_line, shown
from hardpatch.ranges import check_ranges
from hardpatch.yaml_text import BROKEN, check_value, flat

set_parsing_settings(docstring_parse_attribute_docstrings=True)


MAIN_SETTINGS = (
    "epochs",
    "steps",
    "batch_size",
    "seed",
    "data.image_size",
    "data.workers",
    "model.size",
    "model.patch_size",
    "method.host",
    "method.predicting_loss",
    "method.mask_ratio",
    "method.alpha_end",
    "optim.lr",
    "train.device",
    "train.precision",
)
"""Settings that ``hardpatch pretrain --help`` shows; ``--help all`` shows all of them."""


@cache
def _parser() -> ArgumentParser:
    """Return a parser of every setting of a run, as ``--section.name VALUE``."""
    parser = ArgumentParser(prog="hardpatch", exit_on_error=False, add_help=False, usage=argparse.SUPPRESS)
    parser.add_class_arguments(RunConfig)
    return parser


def add_help(parser: argparse.ArgumentParser, *, everything: bool) -> None:
    """List settings in the help of ``parser``: all of them by section, or the main ones."""
    names = setting_names()
    if everything:
        sections = {key: f"{key} ({getattr(RunConfig(), key).__doc__.rstrip('.')})" for key in names if key}
        groups = {"run": [name for name in names[""] if name not in sections]}
        groups |= {title: [f"{key}.{name}" for name in names[key]] for key, title in sections.items()}
    else:
        groups = {"main settings": list(MAIN_SETTINGS)}
    for title, settings in groups.items():
        group = parser.add_argument_group(title)
        for name in settings:
            group.add_argument(f"--{name}", metavar="X", help=_help(name))


def add_data_settings(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Add settings of the section data to the parser of another verb, each with and without the section, as text."""
    group = parser.add_argument_group("reading, as the settings of pretrain")
    for name in names:
        group.add_argument(f"--{name}", f"--data.{name}", metavar="X", help=_help(f"data.{name}"))


def _help(name: str) -> str:
    """Return the help text of a setting: what it is, its choices and its default."""
    text = next(action.help or "" for action in _parser()._actions if action.dest == name)
    choices, default = _choices(_type_of(name)), flat(to_dict(RunConfig()))[name]
    values = f"{' | '.join(choices)}; " if choices else ""
    return f"{text} ({values}default: {_plain_text(default)})".replace("%", "%%")


def setting_choices() -> dict[str, tuple[str, ...]]:
    """Return the words that each setting accepts, by dotted name; none where it has no fixed ones."""
    names = [f"{key}.{name}" if key else name for key, each in setting_names().items() for name in each]
    single = [name for name in names if name not in setting_names()]
    return {name: tuple(word for word in _choices(_type_of(name)) if " " not in word) for name in single}


def _type_of(setting: str) -> Any:
    *section, name = setting.split(".")
    return get_type_hints(type(getattr(RunConfig(), section[0])) if section else RunConfig)[name]


def _choices(hint: Any) -> list[str]:
    """Return the words that a setting of this type accepts; none if it has no fixed ones."""
    if hint is bool:
        return ["true", "false"]
    if get_origin(hint) is Literal:
        return list(get_args(hint))
    if get_origin(hint) in (Union, UnionType):
        words = [word for part in get_args(hint) for word in _choices(part)]
        return [*words, "a number"] if words and int in get_args(hint) else words
    return []


def _plain_text(value: Any) -> str:
    """Return a value as it is written on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def build(values: Mapping[str, Any], arguments: Sequence[str] = ()) -> RunConfig:
    """Build a checked run from nested ``values`` (a recipe, a saved configuration) and command-line ``arguments``.

    Raises:
        UserError: one line that names the setting, what was expected and what came, with a suggestion for a
            misspelled name.
    """
    check_names(values)
    options = names_in(arguments)
    for one, other in (("epochs", "steps"), ("steps", "epochs")):
        if one in options and other not in options:  # the length replaces one in the other unit
            values = {**values, other: None}
    run = _sections(_parse(values, arguments))
    check(run)
    return run


def _sections(nested: Mapping[str, Any]) -> RunConfig:
    sections = {f.name: f.default_factory for f in fields(RunConfig) if callable(f.default_factory)}
    return RunConfig(**{key: sections[key](**value) if key in sections else value for key, value in nested.items()})


def given(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the values that are set on a command line, by dotted name.

    Raises:
        UserError: as :func:`build` does for a name or a value; whether they go together is not checked.
    """
    nested = _parse({}, arguments)
    check_ranges(_sections(nested))
    values = flat(nested)
    return {name: values[name] for name in names_in(arguments) if name in values}


def names_in(arguments: Sequence[str]) -> set[str]:
    """Return the dotted names of the settings on a command line."""
    options = (with_section(argument).split("=")[0] for argument in arguments if argument.startswith("--"))
    return {option.removeprefix("--").removesuffix("+") for option in options}


def _parse(values: Mapping[str, Any], arguments: Sequence[str]) -> dict[str, Any]:
    """Return nested values of all settings, those of the command line over `values` over the defaults."""
    path = None
    sections = {name: names for name, names in setting_names().items() if name}
    if not names_in(arguments) & {"data", "data.path"}:
        path, values = _without_path(values)
    check_value(values, "")
    for argument in map(with_section, arguments):
        name, _, value = argument.partition("=")
        if name.removeprefix("--") in sections:
            raise UserError(
                f"{name}: expected one of its settings, such as {name}.{sections[name.removeprefix('--')][0]}; images "
                "to learn from are --data PATH, files of settings --config FILE"
            )
        check_value(value or name, name)
    words = tuple(map(with_section, arguments))
    try:
        text = json.dumps(values)
    except (TypeError, ValueError):  # a date or a set of YAML, which is refused
        nested = _read(values, words)
    else:
        nested = deepcopy(_read_once(text, words))
    if path is not None:
        nested["data"]["path"] = path
    return nested


@lru_cache(maxsize=64)
def _read_once(values: str, arguments: tuple[str, ...]) -> dict[str, Any]:
    """Return what :func:`_read` does for values as JSON: it takes a tenth of a second."""
    return _read(json.loads(values), arguments)


def _read(values: Mapping[str, Any], arguments: tuple[str, ...]) -> dict[str, Any]:
    """Return nested values of all settings: the arguments over the values over the defaults."""
    parser = _parser()
    try:
        namespace = parser.parse_object(dict(values))
        if arguments:
            namespace = parser.parse_args(list(arguments), namespace=namespace)
    except ArgumentError as error:
        raise UserError(explain(error)) from None
    except BROKEN as error:  # of YAML in a value
        raise UserError(f"settings: expected values that can be read, got one that is not: {error}") from None
    nested: dict[str, Any] = namespace.as_dict()
    return nested


def _without_path(values: Mapping[str, Any]) -> tuple[str | list[str] | None, Mapping[str, Any]]:
    """Take the images out of nested values: the parser would read a folder called null or [a] as YAML."""
    data = values.get("data", {})
    path = data.get("path") if isinstance(data, Mapping) else None
    if isinstance(path, str) or (isinstance(path, list) and all(isinstance(each, str) for each in path)):
        return path, {**values, "data": {name: value for name, value in data.items() if name != "path"}}
    return None, values


def with_section(argument: str) -> str:
    """Return ``--optim.lr`` for ``--lr``: a setting needs no section if only one section has its name.

    Section ``init`` does not count beside another one: ``--heads`` and ``--mean`` are of the model and the data.
    """
    name, *value = argument.removeprefix("--").split("=", 1)
    if name == "init" and argument.startswith("--"):
        return "=".join(["--init.weights", *value])
    sections = [section for section, names in setting_names().items() if name in names]
    sections = [section for section in sections if section != "init"] or sections
    if not argument.startswith("--") or len(sections) != 1 or not sections[0]:
        return argument
    return "=".join([f"--{sections[0]}.{name}", *value])


@cache
def setting_names() -> dict[str, tuple[str, ...]]:
    """Names of the settings of each section; those of the run itself under the empty name."""
    run = RunConfig(epochs=1)
    names = {f.name: getattr(run, f.name) for f in fields(run)}
    sections = {name: tuple(f.name for f in fields(part)) for name, part in names.items() if is_dataclass(part)}
    return {"": tuple(names), **sections}


def check_names(values: Mapping[str, Any], source: str = "configuration") -> None:
    """Refuse settings that do not exist.

    Raises:
        UserError: names the first unknown one, with a suggestion.
    """
    names = setting_names()
    for key, value in values.items():
        if key not in names[""]:
            raise UserError(f"{source}: unknown setting {shown(repr(key))}{did_you_mean(str(key), names[''])}")
        if key in names:
            if not isinstance(value, Mapping):
                raise UserError(f"{source}: expected settings under {key!r}, got {shown(repr(value))}")
            for name in value:
                if name not in names[key]:
                    suggestion = hint(f"{key}.{name}") or did_you_mean(str(name), names[key])
                    raise UserError(f"{source}: unknown setting {shown(repr(f'{key}.{name}'))}{suggestion}")


def explain(error: Exception) -> str:
    """Return the error of a parser as one line, with a suggestion for an unknown setting."""
    text = one_line(error)
    if text.startswith("unrecognized arguments: "):
        names = setting_names()
        options = [*names[""], *(f"{section}.{name}" for section in names if section for name in names[section])]
        unknown = next((word for word in text.split() if word.startswith("--")), text.split()[-1]).split("=")[0]
        name = unknown.removeprefix("--")
        if hint(name):
            return f"{unknown}: unknown argument{hint(name)}"
        # A plain name is most often a nested setting without its section.
        nested = [option for option in options if option.split(".")[-1] == name]
        suggestion = (
            f"; did you mean '--{nested[0]}'?" if nested else did_you_mean(f"--{name}", [f"--{o}" for o in options])
        )
        return f"{unknown}: unknown argument{suggestion}"
    return text


def merged(values: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested ``values`` with ``settings``, by dotted name, in place of theirs."""
    result = {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}
    for name, value in settings.items():
        *section, key = name.split(".")
        (result.setdefault(section[0], {}) if section else result)[key] = value
    return result


def to_dict(run: RunConfig) -> dict[str, Any]:
    """Return nested plain values for YAML or JSON, from which :func:`build` builds an equal run."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, tuple | list) else value

    return plain(asdict(run))


def to_yaml(run: RunConfig) -> str:
    """Return all settings as YAML, in the order of their definition."""
    return yaml.dump(to_dict(run), Dumper=_Dumper, sort_keys=False)


class _Dumper(yaml.SafeDumper):
    """Dumper that writes each list on one line."""


_Dumper.add_representer(
    list, lambda dumper, items: dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)
)


def differences(old: RunConfig, new: RunConfig) -> dict[str, tuple[Any, Any]]:
    """Return the settings in which two runs differ: name -> (old value, new value)."""
    before, after = flat(to_dict(old)), flat(to_dict(new))
    names = {**before, **after}  # a setting may be null in one and a mapping in the other
    return {name: pair for name in names if (pair := (before.get(name), after.get(name)))[0] != pair[1]}
