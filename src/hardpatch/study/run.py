"""Run a study: perform the runs that are not done, and write the table after each."""

import json
import sys
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from hardpatch.errors import UserError
from hardpatch.study import table as output
from hardpatch.study.checks import check
from hardpatch.study.perform import Stopped
from hardpatch.study.picture import draw
from hardpatch.study.plan import Study, Task, plan
from hardpatch.study.processes import perform_all, stop_on_signal
from hardpatch.study.rows import METRICS
from hardpatch.study.scales import SCALES


def run_study(study: Study) -> int:
    """Perform the runs that are not done, then write the table.

    Returns:
        The exit code: 0, 1 if a run failed, 128 + n if signal n stopped the study.

    Raises:
        UserError: for a mistake in the settings or the data, before anything is run.
    """
    stages, reasons = plan(study)
    check(study, stages)
    try:
        study.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: expected a folder that can be written, got {study.out}: {error.strerror}") from None
    remaining = [[task for task in stage if not task.done] for stage in stages]
    print(f"{study.table.title}: {sum(map(len, stages))} runs, {sum(map(len, remaining))} of them to do", flush=True)
    for row in study.table.rows:
        if row.key in reasons:
            print(f"{row.name}: not run, {reasons[row.key]}", flush=True)
    failed: dict[str, str] = {}
    signal_number = 0
    try:
        with stop_on_signal():
            for stage in remaining:
                with closing(perform_all(study, stage)) as performed:
                    for task, reason in performed:
                        if reason:
                            failed[task.row.key] = reason
                            print(f"{task.name}: failed: {reason}", file=sys.stderr, flush=True)
                        else:
                            print(_summary(task), flush=True)
                        _write_table(study, reasons | failed)
    except Stopped as request:
        signal_number = request.number
    results = _write_table(study, reasons | failed)
    draw(study.out, study.table, results, _header(study))
    if signal_number:
        print(f"stopped; finished runs are kept. To resume, run: {study.command}")
        return 128 + signal_number
    print(f"table: {study.out / 'table.md'}")
    return 1 if failed else 0


def _summary(task: Task) -> str:
    result = json.loads(task.result.read_text(encoding="utf-8"))
    metrics = ", ".join(f"{METRICS[key]} {value:.2%}" for key, value in result["metrics"].items())
    return f"{task.name}: {metrics or 'done'} ({result['seconds'] / 60:.1f} min)"


def _write_table(study: Study, reasons: Mapping[str, str]) -> list[output.RowResult]:
    results = output.collect(study.table, study.out, study.seeds, reasons)
    output.write(study.out, study.table, results, _header(study))
    return results


def _header(study: Study) -> dict[str, Any]:
    """Facts of the study that the files of the table begin with."""
    return {
        "scale": study.scale,
        "scale_about": SCALES[study.scale].about,
        "seeds": study.seeds,
        "data": study.data,
        "train": study.train,
        "val": study.val,
        "command": study.command,
    }
