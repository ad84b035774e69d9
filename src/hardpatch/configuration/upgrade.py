"""Renaming of settings in configurations that an earlier version wrote."""

import logging
from collections.abc import Mapping
from typing import Any

from hardpatch.errors import UserError, shown

log = logging.getLogger("hardpatch")

RENAMED = {
    "data.colour_jitter": "data.color_jitter",
    "fast.asked_share": "fast.prediction_ratio",
    "ibot.colour": "ibot.color",
    "optim.accumulate": "optim.accumulation_steps",
}
RENAMED_VALUES = {
    "method.target": {"normalised_pixels": "normalized_pixels"},
    "method.predicting_loss": {"absolute_standardised": "absolute_standardized"},
}
REMOVED: dict[str, Any] = {
    "fast.teacher_blocks": None,
    "fast.teacher_every": 1,
    "ibot.masked_share": 0.5,
    "ibot.student_temperature": 0.1,
    "ibot.teacher_temperature_start": 0.04,
    "ibot.teacher_temperature_end": 0.07,
    "ibot.centre_momentum": 0.9,
}
"""Removed settings, and the constant that replaced each."""


def upgrade(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Return the saved configuration of a run under the current names, and log what was renamed.

    Args:
        values: sections of settings.
        source: file that they come from.

    Raises:
        UserError: if the run had a removed setting at another value than the constant.
    """
    upgraded = {name: dict(part) if isinstance(part, Mapping) else part for name, part in values.items()}
    renamed = []
    for old, new in RENAMED.items():
        section, name = old.split(".")
        if name in upgraded.get(section, {}):
            upgraded[section][new.split(".")[1]] = upgraded[section].pop(name)
            renamed.append(f"{old} as {new}")
    for setting, names in RENAMED_VALUES.items():
        section, name = setting.split(".")
        value = upgraded.get(section, {}).get(name)
        if isinstance(value, str) and value in names:
            upgraded[section][name] = names[value]
            renamed.append(f"{setting} {value} as {names[value]}")
    for setting, fixed in REMOVED.items():
        section, name = setting.split(".")
        if name in upgraded.get(section, {}):
            value = upgraded[section].pop(name)
            if value != fixed:
                raise UserError(
                    f"{source}: made with {setting} {shown(repr(value))}, which this version does not support; "
                    f"it is always {fixed!r}"
                )
    if renamed:
        log.info("%s was written by an earlier version: reading %s", source, ", ".join(renamed))
    return upgraded


def hint(setting: str) -> str:
    """Return the end of an error message for a renamed or removed setting, else an empty string."""
    if setting in RENAMED:
        return f"; it is now called {RENAMED[setting]!r}"
    return f"; it is gone, the value is always {REMOVED[setting]!r}" if setting in REMOVED else ""
