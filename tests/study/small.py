"""A study of tables by name, and its plan; nothing is read or written."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from hardpatch.study import rows
from hardpatch.study.plan import Plan, Study, plan


def study_of(*tables: str, **fields: Any) -> Study:
    """Return a study at scale micro, with the fields that differ."""
    study = Study(
        tables=tuple(map(rows.read, tables)),
        scale="micro",
        out=Path("study"),
        data="images",
        train="images",
        val="images",
        detect=("images", "boxes.json", "images", "boxes.json"),
        segment=("images", "images"),
        tokenizer="tokenizer.safetensors",
    )
    return replace(study, **fields)


def plan_of(*tables: str, **fields: Any) -> Plan:
    """Return the plan of such a study."""
    return plan(study_of(*tables, **fields))
