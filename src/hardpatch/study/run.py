"""Run a study: perform the runs that are not done, and write the tables after each."""

from collections.abc import Mapping, Sequence
from contextlib import closing

from hardpatch.files import write_text_atomically
from hardpatch.printable import say
from hardpatch.study import table as output
from hardpatch.study.checks import FACTS, check, facts
from hardpatch.study.page import write_page
from hardpatch.study.perform import Stopped, missing_measures, read_result
from hardpatch.study.picture import draw
from hardpatch.study.plan import Plan, Study, Task, metric_title, plan
from hardpatch.study.processes import perform_all, stop_on_signal
from hardpatch.study.rows import METRICS, Table
from hardpatch.study.values import RowResult
from hardpatch.train.lock import locked


def run_study(study: Study) -> int:
    """Perform the runs that are not done, then write the tables.

    Returns:
        The exit code: 0, 1 if a run failed, 128 + n if signal n stopped the study.

    Raises:
        UserError: for a mistake in the settings or the data, before anything is run, or if another process uses the
            folder.
    """
    planned = plan(study)
    check(study, planned)
    with locked(study.out):
        return _run(study, planned)


def _run(study: Study, planned: Plan) -> int:
    write_text_atomically(study.out / FACTS, facts(study))
    remaining = [[task for task in stage if missing_measures(task) != ()] for stage in planned.stages]
    _announce(study, planned, remaining)
    failures: dict[str, str] = {}
    signal_number = 0
    try:
        with stop_on_signal():
            for stage in remaining:
                with closing(perform_all(study, stage)) as performed:
                    for task, reason in performed:
                        if reason:
                            failures[task.run_name] = reason
                            say(f"{task.name}: failed: {reason}", error=True)
                        else:
                            say(_summary(study, task))
                        _write(study, planned, failures)
    except Stopped as request:
        signal_number = request.number
    for table, results in _write(study, planned, failures):
        draw(study, table, results)
    if signal_number:
        print(f"stopped; finished runs are kept. To resume, run: {study.command}")
        return 128 + signal_number
    print(f"tables: {study.out / 'README.md'}")
    return 1 if failures else 0


def _announce(study: Study, planned: Plan, remaining: Sequence[Sequence[Task]]) -> None:
    """Print the number of runs, and which rows are not run."""
    names = ", ".join(table.name for table in study.tables)
    total, rows = sum(map(len, planned.stages)), sum(len(table.rows) for table in study.tables)
    say(f"{names}: {rows} rows, {total} runs, {sum(map(len, remaining))} of them to do")
    for (table, row), reason in planned.reasons.items():
        say(f"{table}: {row}: not run, {reason}")


def _summary(study: Study, task: Task) -> str:
    result = read_result(task)
    titles = {key: metric for key, metric in METRICS.items() if key in result["metrics"]}
    values = [
        f"{metric_title(study, metric)} {metric.factor * result['metrics'][key]:.2f}" for key, metric in titles.items()
    ]
    minutes = sum(result["seconds"].values()) / 60
    return f"{task.name}: {', '.join(values) or 'done'} ({minutes:.1f} min)"


def _write(study: Study, planned: Plan, failures: Mapping[str, str]) -> list[tuple[Table, list[RowResult]]]:
    """Write the tables and the page, and return the rows of each table."""
    results = [(table, output.collect(study, table, planned, failures)) for table in study.tables]
    for table, rows in results:
        (study.out / table.name).mkdir(exist_ok=True)
        output.write(study, table, rows)
    write_page(study, results)
    return results
