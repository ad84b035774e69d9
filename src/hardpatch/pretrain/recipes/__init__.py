"""Recipes, which are YAML files of settings, and files of the user in the same format.

A file contains the settings that differ from the defaults in :mod:`hardpatch.configuration.sections`, or from the
recipe that its ``base`` names.
"""

from importlib import resources
from pathlib import Path
from typing import Any

from hardpatch.configuration.config import check_names
from hardpatch.errors import UserError, did_you_mean, shown
from hardpatch.paths import user_path
from hardpatch.yaml_text import parse_yaml, read_settings

FOLDER = resources.files("hardpatch.pretrain") / "recipes"


def names() -> list[str]:
    """Return the names of the recipes in the package."""
    return sorted(path.name.removesuffix(".yaml") for path in FOLDER.iterdir() if path.name.endswith(".yaml"))


def text(name: str) -> str:
    """Return the YAML of a recipe; its first line is a comment that describes it.

    Raises:
        UserError: if there is no recipe of that name.
    """
    recipes = names()
    if name not in recipes:
        raise UserError(f"--recipe: no recipe {name!r}{did_you_mean(name, recipes)} (see: hardpatch recipes)")
    return (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")


def read(name: str) -> dict[str, Any]:
    """Return the settings of a recipe, merged into those of its ``base`` if it has one."""
    return _on_base(parse_yaml(text(name), f"recipe {name}", words=True), f"recipe {name}")


def read_file(path: str | Path) -> dict[str, Any]:
    """Return the settings of a YAML file of the user, which may name a recipe as its ``base``.

    Raises:
        UserError: if the file does not exist, is not YAML or has unknown settings.
    """
    return _on_base(read_settings(user_path(path, "--config"), "--config", words=True), str(path))


def _on_base(values: dict[str, Any], source: str) -> dict[str, Any]:
    base = values.pop("base", None)
    check_names(values, source)
    if base is None:
        return values
    if not isinstance(base, str):
        raise UserError(f"{source}: expected the name of a recipe as base, got {shown(base)}")
    merged = read(base)
    if "steps" in values or "epochs" in values:
        merged = {key: value for key, value in merged.items() if key not in ("steps", "epochs")}
    for key, value in values.items():
        merged[key] = {**merged.get(key, {}), **value} if isinstance(value, dict) else value
    return merged
