"""The named runs, a YAML file each, and files of the user's in the same form.

A file states what differs from the defaults of :mod:`hardpatch.pretrain.sections`, or from the recipe
that its ``base`` names.
"""

from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from hardpatch.errors import UserError, did_you_mean
from hardpatch.pretrain.config import check_names

FOLDER = resources.files("hardpatch.pretrain") / "recipes"


def names() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(path.name.removesuffix(".yaml") for path in FOLDER.iterdir() if path.name.endswith(".yaml"))


def text(name: str) -> str:
    """The YAML of a recipe as it stands in the package; its first comment says what it is.

    Raises:
        UserError: if there is none of that name.
    """
    known = names()
    if name not in known:
        raise UserError(f"--recipe: no recipe {name!r}{did_you_mean(name, known)} (see: hardpatch recipes)")
    return (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


def read(name: str) -> dict[str, Any]:
    """Settings of a recipe, on top of those of the recipe that its ``base`` names."""
    return _on_base(yaml.load(text(name), _Loader), f"recipe {name}")


def read_file(path: str | Path) -> dict[str, Any]:
    """Settings of a YAML file of the user's; it may name a recipe as its ``base``.

    Raises:
        UserError: if it is not there, is not YAML or has unknown settings.
    """
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise UserError(f"--config: cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"--config: {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"--config: {path} holds no settings")
    return _on_base(values, str(path))


class _Loader(yaml.SafeLoader):
    """As in YAML 1.2, yes, no, on and off are words: only true and false are truth values."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool" or first in "tTfF"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _on_base(values: dict[str, Any], source: str) -> dict[str, Any]:
    base = values.pop("base", None)
    check_names(values, source)
    if base is None:
        return values
    merged = read(base)
    if "steps" in values or "epochs" in values:
        merged = {key: value for key, value in merged.items() if key not in ("steps", "epochs")}
    for key, value in values.items():
        merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    return merged
