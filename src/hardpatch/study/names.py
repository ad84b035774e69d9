"""Name of a run of a study: what it trains, in words that are the same in every table."""

import re
from typing import Any

from hardpatch.configuration import config
from hardpatch.configuration.sections import RunConfig
from hardpatch.study.rows import StudyRow

FILES = ("method.tokenizer", "method.frozen_weights")
"""Settings that name files, which may lie anywhere."""


def run_name(row: StudyRow, run: RunConfig, reference: RunConfig, *, large: bool) -> str:
    """Return the name of a run's folder, such as ``mae``, ``hpm`` or ``hpm-mask_ratio_0.5-alpha_end_0``.

    Rows of different tables with the same settings have the same name, and share a run.

    Args:
        row: a row with these settings.
        run: its settings.
        reference: HPM over the same host, with the scale's settings and the row's length.
        large: True for the larger encoder.
    """
    host, mined = run.method.host, run.has_predictor
    changes = {
        name: value
        for name, (_, value) in config.differences(reference, run).items()
        if name not in FILES and not (name == "method.predicting_loss" and not mined)
    }
    if row.scratch:
        parts, changes = ["scratch"], {}
    elif row.keep:
        parts = [f"supervised_{row.keep}"]
    elif mined:
        parts = ["hpm" if host == "mae" else f"hpm_{host}"]
    else:
        parts = [host]
    parts += ["large"] if large else []
    parts += [f"length_{row.length:g}"] if row.length != 1.0 else []
    parts += [f"{name.rpartition('.')[2]}_{_text(value)}" for name, value in changes.items()]
    return "-".join(parts)


def _text(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return re.sub(r"[^a-z0-9.-]+", "_", text.lower()).strip("_")
