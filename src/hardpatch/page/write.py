"""The page of one run or of several, rendered and written."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardpatch import __version__
from hardpatch.files import write_text_atomically
from hardpatch.page import tables
from hardpatch.page.charts import Line
from hardpatch.page.folder import RunFiles, read_run, text_of
from hardpatch.page.panels import Panel, panels_of, panels_side_by_side, thinning_line
from hardpatch.page.pictures import strips_of, strips_side_by_side, whole_pictures
from hardpatch.printable import printable

if TYPE_CHECKING:
    from jinja2 import Template

HEADLINE = (
    ("top1", "top-1"),
    ("top5", "top-5"),
    ("map", "mean average precision"),
    ("r2", "R²"),
    ("miou", "mIoU"),
    ("mean_accuracy", "mean accuracy of classes"),
    ("pixel_accuracy", "pixel accuracy"),
    ("box AP", "AP of boxes"),
    ("mask AP", "AP of masks"),
    ("knn_top1", "k-NN top-1"),
    ("check_knn_top1", "k-NN top-1 of the checks"),
    ("check_rankme", "effective rank (RankMe)"),
    ("check_map_correlation", "rank correlation of the map that is mined by"),
    ("pair_accuracy", "pairs in correct order"),
    ("reconstruction_loss", "reconstruction loss"),
)
"""Numbers that are shown large, the first four of those that a run has."""
TILES = 4
OPEN_ROWS = 25
"""Rows of the longest table of results that is not folded."""


@dataclass(frozen=True)
class Report:
    """Result of :func:`write_report`."""

    path: Path
    runs: tuple[RunFiles, ...]
    bytes: int
    """of the page"""


def write_report(folders: Sequence[Path], out: Path) -> Report:
    """Write the page of one run or of several to ``out``, completely or not at all: ``hardpatch report``.

    Args:
        folders: of the runs, at least one.
        out: HTML file; a file that is there is replaced.

    Raises:
        UserError: if a folder is no run.
        OSError: if the file cannot be written.
    """
    runs = tuple(read_run(folder) for folder in folders)
    text = render(runs)
    write_text_atomically(out, text)
    return Report(out, runs, len(text.encode("utf-8", "backslashreplace")))


def render(runs: Sequence[RunFiles]) -> str:
    """Return the page of one run or of several as HTML."""
    several = len(runs) > 1
    names = _names(runs)
    panels = panels_side_by_side(runs, names) if several else panels_of(runs[0])
    strips = strips_side_by_side(runs, names) if several else strips_of(runs[0])
    values: dict[str, Any] = {
        "title": f"{len(runs)} runs" if several else names[0],
        "state": ", ".join(names) if several else _state(runs[0]),
        "lines": [Line(name, ([], []), number) for number, name in enumerate(names)],
        "runs": [_view(run, several=several) for run in runs],
        "panels": [_safe(panel) for panel in panels],
        "thinning": thinning_line(runs),
        "strip_list": strips,
        "strip_heading": "The same images in each run" if several else "The same images through training",
        "most_rows": OPEN_ROWS,
        "version": __version__,
        "made": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    if several:
        values |= {
            "overview": _overview(runs, names),
            "results": tables.results_side_by_side(runs, names),
            "differing": tables.settings_side_by_side(runs, names),
        }
    return _template().render(**values, sections=_sections(values))


def _names(runs: Sequence[RunFiles]) -> list[str]:
    """Return a name for each run: that of its folder, or its path where two have the same name."""
    names = [run.name for run in runs]
    return [run.name if names.count(run.name) == 1 else printable(str(run.folder)) for run in runs]


def _state(run: RunFiles) -> str:
    words = [f"hardpatch {run.verb}", "finished" if run.finished else "not finished", f"step {run.step:,}"]
    return " · ".join(words)


def _view(run: RunFiles, *, several: bool) -> dict[str, Any]:
    """Return what the template shows of a run."""
    verdict = run.result.get("verdict")
    verdict = verdict if isinstance(verdict, Mapping) else {}
    reasons = verdict.get("reasons")
    pictures = [] if several else whole_pictures(run)
    return {
        "notes": run.notes,
        "learned": text_of(verdict["learned"]) if "learned" in verdict else "",
        "reasons": [text_of(reason) for reason in reasons] if isinstance(reasons, list) else [],
        "headline": _headline(run),
        "facts": tables.facts(run),
        "series": tables.series_table(run),
        "pictures": pictures,
        "results": tables.result_tables(run),
        "changed": tables.changed_settings(run),
        "changes": _changes(run),
        "settings": tables.all_settings(run),
        "plan": run.plan.splitlines(),
        "environment": tables.environment_table(run),
        "commands": _commands(run),
    }


def _headline(run: RunFiles) -> list[tuple[str, tables.Cell]]:
    numbers = {name: series.last for name, series in run.series.items()} | tables.numbers_of(run)
    return [(word, tables.cell(numbers[name])) for name, word in HEADLINE if name in numbers][:TILES]


def _changes(run: RunFiles) -> tables.Table | None:
    """Return the settings that later calls changed; None if there are none."""
    found = run.environment.get("changes")
    rows = [
        (tables.cell(change.get("step")), tables.Cell(printable(str(name))), tables.cell(pair[0]), tables.cell(pair[1]))
        for change in (found if isinstance(found, list) else [])
        if isinstance(change, Mapping) and isinstance(change.get("settings"), Mapping)
        for name, pair in change["settings"].items()
        if isinstance(pair, list) and len(pair) == 2
    ]
    if not rows:
        return None
    return tables.Table("Settings that a later call changed", ("from step", "setting", "before", "after"), tuple(rows))


def _commands(run: RunFiles) -> list[tuple[str, list[str]]]:
    """Return groups of commands with their titles."""
    groups = []
    if isinstance(command := run.environment.get("command"), str):
        groups.append(("The run was started by", [command]))
    resumed = run.environment.get("resumed_by")
    if isinstance(resumed, list) and resumed:
        groups.append(("and resumed by", [text_of(command) for command in resumed]))
    folder = shlex.quote(printable(str(run.folder)))
    if not run.finished and run.settings and run.verb != "unknown":
        groups.append(("To resume it", [f"hardpatch {run.verb} --resume --out {folder}"]))
    groups.append(("This page anew", [f"hardpatch report {folder} --out FILE.html"]))
    return groups


def _overview(runs: Sequence[RunFiles], names: Sequence[str]) -> tables.Table:
    rows = []
    for run, name in zip(runs, names, strict=True):
        verdict = run.result.get("verdict")
        learned = verdict.get("learned") if isinstance(verdict, Mapping) else None
        cells = (run.verb, "finished" if run.finished else "not finished", run.step, run.result.get("seconds"), learned)
        rows.append((tables.Cell(name), *map(tables.cell, cells)))
    columns = ("run", "kind", "state", "step", "seconds", "learned")
    return tables.Table("The runs, in the order of the command", columns, tuple(rows))


def _sections(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return identifier and heading of the sections that a page has."""
    several, first = len(values["runs"]) > 1, values["runs"][0]
    found = [("summary", "Runs" if several else "Summary"), ("curves", "Curves" if values["panels"] else "")]
    found.append(("training", values["strip_heading"] if values["strip_list"] else ""))
    if several:
        found[1:1] = [("settings", "Settings that differ")]
        found.append(("each", "Each run"))
    else:
        found += [
            ("pictures", "Pictures" if first["pictures"] else ""),
            ("results", "Results" if first["results"] else ""),
        ]
        found += [("settings", "Settings"), ("reproduce", "Reproduce")]
    return [(ident, heading) for ident, heading in found if heading]


def _safe(panel: Panel) -> dict[str, Any]:
    """Return a chart whose SVG goes into the page as it is; it was written with all texts escaped."""
    from markupsafe import Markup

    return {"title": panel.title, "lines": panel.lines, "svg": Markup(panel.svg)}


@cache
def _template() -> "Template":
    """Return the template of the page; all that it writes is escaped, control characters too."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    def shown(value: object) -> object:
        return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, finalize=shown, trim_blocks=True, lstrip_blocks=True
    )
    files = resources.files("hardpatch.page")
    environment.globals["style"] = Markup((files / "style.css").read_text(encoding="utf-8"))
    return environment.from_string((files / "template.html").read_text(encoding="utf-8"))
