"""Write the table of a study from the results of its runs, as Markdown and as JSON."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardpatch import __version__
from hardpatch.files import write_text_atomically
from hardpatch.study.plan import RESULT
from hardpatch.study.rows import METRICS, StudyRow, Table


@dataclass(frozen=True)
class MeanStd:
    """A metric over the seeds of a row."""

    values: tuple[float, ...]
    """One fraction for each seed."""

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation (n - 1); None for a single seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        """Format in percent."""
        spread = "" if self.std is None else f" ± {100 * self.std:.2f}"
        return f"{100 * self.mean:.2f}{spread}"


@dataclass(frozen=True)
class RowResult:
    """The measurements of a row."""

    row: StudyRow
    ours: Mapping[str, MeanStd]
    """Our metrics, by key of :data:`~hardpatch.study.rows.METRICS`."""
    missing: str
    """Reason why seeds are missing, in one line; empty if none is."""


def collect(table: Table, out: Path, seeds: int, reasons: Mapping[str, str]) -> list[RowResult]:
    """Read the results of all rows.

    Args:
        table: the table with its rows.
        out: folder of the study, with ``ROW/seed_K/result.json``.
        seeds: number of seeds that each row should have.
        reasons: why a row could not be run, by row key.
    """
    collected = []
    for row in table.rows:
        paths = [out / row.key / f"seed_{seed}" / RESULT for seed in range(seeds)]
        results = [json.loads(path.read_text(encoding="utf-8"))["metrics"] for path in paths if path.is_file()]
        keys = [key for key in METRICS if any(key in result for result in results)]
        ours = {key: MeanStd(tuple(result[key] for result in results if key in result)) for key in keys}
        missing = ""
        if len(results) < seeds:
            done = f"{len(results)} of {seeds} seeds" if results else "not run"
            missing = f"{done}: {reasons.get(row.key, 'pending')}"
        collected.append(RowResult(row, ours, missing))
    return collected


def write(out: Path, table: Table, results: Sequence[RowResult], header: Mapping[str, Any]) -> None:
    """Write ``table.md``, ``table.json`` and ``README.md``, each as a whole or not at all.

    Args:
        out: folder of the study.
        table: its title and sources.
        results: the rows, from :func:`collect`.
        header: facts of the study: ``scale``, ``scale_about``, ``seeds``, ``command``, ``data``, ``train``, ``val``.
    """
    write_text_atomically(out / "table.md", markdown(table, results, header))
    content = json.dumps(as_json(table, results, header), indent=2, allow_nan=False)
    write_text_atomically(out / "table.json", content + "\n")
    write_text_atomically(out / "README.md", README.format(table=table, **header, version=__version__))


def markdown(table: Table, results: Sequence[RowResult], header: Mapping[str, Any]) -> str:
    """Format the table as Markdown: our columns, then the paper's, which are labeled as such."""
    ours, papers = columns(results)
    titles = ["", *(METRICS[key] for key in ours), *(f"paper's {METRICS[key]}" for key in papers)]
    rows = []
    for result in results:
        name = f"**{result.row.name}**" if result.row.default else result.row.name
        cells = [str(result.ours[key]) if key in result.ours else "" for key in ours]
        numbers = [result.row.paper.get(key) for key in papers]
        if result.missing:
            name += f" ({result.missing})"
        name = " ".join(name.replace("|", r"\|").split())  # a reason can be any text
        rows.append([name, *cells, *("" if number is None else f"{number:g}" for number in numbers)])
    seeds = header["seeds"]
    spread = f"; mean ± standard deviation over {seeds} seeds" if seeds > 1 else "; one seed"
    text = [
        f"# {table.title}",
        "",
        f"`hardpatch study {table.name}`, scale {header['scale']}: {header['scale_about']}.",
        f"Top-1 accuracies in percent{spread}. The paper's default row is bold.",
        "",
        *(f"| {' | '.join(cells)} |" for cells in (titles, ["---", *["---:"] * (len(titles) - 1)], *rows)),
        "",
        f"The paper's numbers were measured on ImageNet-1K with ViT-B/16. {table.source.strip()}",
        "",
    ]
    return "\n".join(text)


def as_json(table: Table, results: Sequence[RowResult], header: Mapping[str, Any]) -> dict[str, Any]:
    """Return the table for programs; our accuracies are fractions, the paper's are percent."""
    return {
        "table": table.name,
        "title": table.title,
        **header,
        "hardpatch": __version__,
        "paper_source": table.source,
        "rows": [
            {
                "name": result.row.name,
                "key": result.row.key,
                "default": result.row.default,
                "settings": {**table.base, **result.row.settings},
                "length": result.row.length,
                "large": result.row.large,
                "keep": result.row.keep,
                "ours": {
                    key: {"mean": metric.mean, "std": metric.std, "seeds": len(metric.values), "values": metric.values}
                    for key, metric in result.ours.items()
                },
                "paper_per_cent": dict(result.row.paper),
                "missing": result.missing or None,
            }
            for result in results
        ],
    }


def columns(results: Sequence[RowResult]) -> tuple[list[str], list[str]]:
    """Return the keys of the metrics that were measured, and of those that the paper gives."""
    ours = [key for key in METRICS if any(key in result.ours for result in results)]
    papers = [key for key in METRICS if any(result.row.paper.get(key) is not None for result in results)]
    return ours, papers


README = """# {table.title}

Made by `{command}` (hardpatch {version}).

- scale {scale}: {scale_about}
- seeds for each row: {seeds}
- trained on `{data}`; k-NN, linear probe and fine-tuning learn from `{train}` and are evaluated on `{val}`

To resume an interrupted study, run the same command. It skips the runs that are done.

| file | content |
|---|---|
| `table.md` | the table, with the paper's numbers beside ours |
| `table.json` | the same for programs, with the values of every seed |
| `table.png` | the same as a picture |
| `ROW/seed_K/` | a run folder, for `hardpatch info`, `knn`, `linear`, `score` and all other verbs that take RUN |
| `ROW/seed_K/result.json` | its metrics, for all k and all learning rates |

A study draws no pictures of its runs; `hardpatch pretrain --resume --out ROW/seed_K` adds them.

k-NN is reported for the best k and the linear probe for the best learning rate. Both are chosen on the images that the
row is evaluated on, as is common practice.
"""
