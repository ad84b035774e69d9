"""What the settings of the verbs that train on labels have in common.

Nothing here imports torch, so that the command line answers at once.
"""

from collections.abc import Mapping
from dataclasses import asdict, field
from typing import TYPE_CHECKING, Any

import yaml

from hardpatch.errors import UserError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def setting(default: Any, told: str) -> Any:
    """A field of a dataclass of settings; the command line tells ``told``."""
    return field(default=default, metadata={"help": told})


def to_dict(run: "DataclassInstance") -> dict[str, Any]:
    """Plain values, as YAML and JSON hold them: lists for tuples."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(run).items()}


def to_yaml(values: Mapping[str, Any]) -> str:
    """Plain values in their order, a line each."""
    # None: lists of numbers stay on one line
    return yaml.safe_dump(dict(values), sort_keys=False, default_flow_style=None, width=1000)


def expect(run: "DataclassInstance", name: str, expected: str, holds: bool) -> None:
    """Refuse the setting ``name`` of a run unless it ``holds``.

    Raises:
        UserError: says what was expected.
    """
    if not holds:
        value = getattr(run, name)
        told = " ".join(map(str, value)) if isinstance(value, tuple) else value
        raise UserError(f"--{name}: expected {expected}, got {told}")
