"""Collect the results of a table, and write them with the paper's figures beside ours."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from hardpatch import __version__
from hardpatch.files import write_text_atomically
from hardpatch.study import orders
from hardpatch.study.plan import RESULT, Plan, Study, metric_title, not_measured
from hardpatch.study.rows import METRICS, StudyRow, Table
from hardpatch.study.values import MeanStd, RowResult


def collect(study: Study, table: Table, plan: Plan, failures: Mapping[str, str]) -> list[RowResult]:
    """Read the results of all rows.

    Args:
        study: seeds and folder.
        table: the table with its rows.
        plan: which cell comes from which run.
        failures: why a run failed, by its name.
    """
    return [_collect_row(study, table, row, plan, failures) for row in table.rows]


def _collect_row(study: Study, table: Table, row: StudyRow, plan: Plan, failures: Mapping[str, str]) -> RowResult:
    reason = plan.reasons.get((table.name, row.name))
    if reason is not None:
        return RowResult(row, {}, f"not run: {reason}")
    ours: dict[str, MeanStd] = {}
    cells = {large: (table.name, row.name, large) for large in (False, True)}
    runs = {large: plan.runs[cell] for large, cell in cells.items() if cell in plan.runs}
    results = {large: _read(study, name) for large, name in runs.items()}
    for key, metric in METRICS.items():
        value = key.removesuffix("_large")
        values = [result[value] for result in results.get(metric.large, []) if value in result]
        if values and (key in table.metrics or not metric.large):
            ours[key] = MeanStd(tuple(values), metric.factor)
    done = min(len(result) for result in results.values())
    missing = ""
    if done < study.seeds:
        why = "; ".join(failures[name] for name in runs.values() if name in failures) or "pending"
        missing = f"{f'{done} of {study.seeds} seeds' if done else 'not run'}: {why}"
    elif any(name in failures for name in runs.values()):
        missing = "; ".join(failures[name] for name in runs.values() if name in failures)
    return RowResult(row, ours, missing, tuple(runs.values()))


def _read(study: Study, name: str) -> list[dict[str, float]]:
    """Return the metrics of a run, of each seed that has any."""
    paths = [study.out / "runs" / name / f"seed_{seed}" / RESULT for seed in range(study.seeds)]
    metrics = [json.loads(path.read_text(encoding="utf-8"))["metrics"] for path in paths if path.is_file()]
    return [values for values in metrics if values]


def write(study: Study, table: Table, results: Sequence[RowResult]) -> None:
    """Write ``table.md`` and ``table.json`` in the table's folder, each as a whole or not at all."""
    folder = study.out / table.name
    write_text_atomically(folder / "table.md", markdown(study, table, results))
    content = json.dumps(as_json(study, table, results), indent=2, allow_nan=False)
    write_text_atomically(folder / "table.json", content + "\n")


def markdown(study: Study, table: Table, results: Sequence[RowResult], level: str = "#") -> str:
    """Format the table as Markdown: our columns, then the paper's, which are labeled as such."""
    ours, papers = columns(table, results)
    titles = [metric_title(study, METRICS[key]) for key in ours]
    paper_titles = [f"paper: {METRICS[key].title.replace('larger', 'ViT-L')}" for key in papers]
    rows = []
    for result in results:
        name = f"**{result.row.name}**" if result.row.default else result.row.name
        cells = [str(result.ours[key]) if key in result.ours else "" for key in ours]
        figures = [_figure(table, result.row.paper[key]) if key in result.row.paper else "" for key in papers]
        if result.missing:
            name += f" ({result.missing})"
        name = " ".join(name.replace("|", r"\|").split())  # a reason can be any text
        rows.append([name, *cells, *figures])
    spread = f"mean ± standard deviation over {study.seeds} seeds" if study.seeds > 1 else "one seed"
    titles = ["", *titles, *paper_titles]
    text = [f"{level} {table.title}", "", f"Percent; {spread}."]
    if table.of_the_paper:
        text[-1] += (
            " The paper's default row is bold; its figures are of ViT-B unless said, on ImageNet-1K (COCO, ADE20K)."
        )
    unmeasured = dict.fromkeys(METRICS[key].measure for key in table.metrics if key not in ours)
    reasons = [reason for measure in unmeasured if (reason := not_measured(study, measure))]
    if "box_ap" in ours and "mask_ap" in table.metrics and "mask_ap" not in ours:
        reasons.append("AP mask, because the annotations have no masks")
    if reasons:
        text += ["", f"Not measured: {'; '.join(reasons)}."]
    text += ["", *(f"| {' | '.join(cells)} |" for cells in (titles, ["---", *["---:"] * (len(titles) - 1)], *rows)), ""]
    if table.note:
        text += [table.note.strip(), ""]
    return "\n".join([*text, *orders.markdown(table, results, level + "#", seeds=study.seeds)])


def _figure(table: Table, value: float) -> str:
    """Format a figure of the paper with the decimals that its table has."""
    figures = (figure for row in table.rows for figure in row.paper.values())
    return f"{value:.{max(len(str(figure).partition('.')[2]) for figure in figures)}f}"


def as_json(study: Study, table: Table, results: Sequence[RowResult]) -> dict[str, Any]:
    """Return the table for programs; our values are fractions (speedup a ratio), the paper's are percent."""
    return {
        "table": table.name,
        "title": table.title,
        **header(study),
        "hardpatch": __version__,
        "note": table.note,
        "rows": [
            {
                "name": result.row.name,
                "group": result.row.group,
                "default": result.row.default,
                "settings": {**table.base, **result.row.settings},
                "length": result.row.length,
                "keep": result.row.keep,
                "cited": result.row.cited,
                "in_the_paper": table.of_the_paper and not result.row.ours,
                "runs": list(result.runs),
                "ours": {
                    key: {"mean": value.mean, "std": value.std, "seeds": len(value.values), "values": value.values}
                    for key, value in result.ours.items()
                },
                "paper_percent": dict(result.row.paper),
                "missing": result.missing or None,
            }
            for result in results
        ],
        "pairs": [pair._asdict() for pair in orders.pairs(table, results)],
    }


def columns(table: Table, results: Sequence[RowResult]) -> tuple[list[str], list[str]]:
    """Return the keys of the columns that were measured, and of those that the paper gives.

    A run that tables share has what any of them measures: here, a table's own columns count, k-NN and linear probe.
    """
    shown = (*table.metrics, "linear", "knn")
    ours = [key for key in METRICS if key in shown and any(key in result.ours for result in results)]
    papers = [key for key in METRICS if any(key in result.row.paper for result in results)]
    return ours, papers


def header(study: Study) -> dict[str, Any]:
    """Return the facts of a study that its files begin with."""
    return {
        "scale": study.scale,
        "seeds": study.seeds,
        "data": study.data,
        "train": study.train,
        "val": study.val,
        "command": study.command,
    }
