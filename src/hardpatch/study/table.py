"""The table that comes out of a study: results of its runs to Markdown, JSON and a picture."""

import json
import math
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardpatch import __version__
from hardpatch.figures import FAINT, INK, LINES
from hardpatch.study.rows import METRICS, Row, Table

RESULT = "result.json"
"""In the folder of a run, when it is done."""


@dataclass(frozen=True)
class Figure:
    """A quantity over the seeds of a row."""

    values: tuple[float, ...]
    """One a seed, as fractions."""

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """Standard deviation of a sample (n - 1); None for a single seed."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def __str__(self) -> str:
        """In percent."""
        spread = "" if self.std is None else f" ± {100 * self.std:.2f}"
        return f"{100 * self.mean:.2f}{spread}"


@dataclass(frozen=True)
class Line:
    """What is known of a row."""

    row: Row
    ours: Mapping[str, Figure]
    """By key of :data:`~hardpatch.study.rows.METRICS`."""
    missing: str
    """Why seeds are missing, in one line; empty where none is."""


def collect(table: Table, out: Path, seeds: int, reasons: Mapping[str, str]) -> list[Line]:
    """The table's lines from the results under ``out``.

    Args:
        table: its rows.
        out: the folder of the study, with ``ROW/seed_K/result.json``.
        seeds: how many of each row there should be.
        reasons: why a row could not be run, by its key.
    """
    lines = []
    for row in table.rows:
        paths = [out / row.key / f"seed_{seed}" / RESULT for seed in range(seeds)]
        results = [json.loads(path.read_text(encoding="utf-8"))["metrics"] for path in paths if path.is_file()]
        known = [key for key in METRICS if any(key in result for result in results)]
        ours = {key: Figure(tuple(result[key] for result in results if key in result)) for key in known}
        missing = ""
        if len(results) < seeds:
            done = f"{len(results)} of {seeds} seeds" if results else "not run"
            missing = f"{done}: {reasons.get(row.key, 'not yet')}"
        lines.append(Line(row, ours, missing))
    return lines


def write(out: Path, table: Table, lines: Sequence[Line], about: Mapping[str, Any]) -> None:
    """Write ``table.md``, ``table.json`` and ``README.md``, each whole or not at all.

    Args:
        out: the folder of the study.
        table: its title and sources.
        lines: of :func:`collect`.
        about: what else the files say: ``scale``, ``scale_about``, ``seeds``, ``command``, ``train``, ``val``.
    """
    write_text(out / "table.md", markdown(table, lines, about))
    write_text(out / "table.json", json.dumps(as_json(table, lines, about), indent=2, allow_nan=False) + "\n")
    write_text(out / "README.md", README.format(table=table, **about, version=__version__))


def markdown(table: Table, lines: Sequence[Line], about: Mapping[str, Any]) -> str:
    """The table as Markdown: our columns, then the paper's, labeled so."""
    ours, papers = _columns(lines)
    header = ["", *(METRICS[key] for key in ours), *(f"paper's {METRICS[key]}" for key in papers)]
    rows = []
    for line in lines:
        name = f"**{line.row.name}**" if line.row.default else line.row.name
        cells = [str(line.ours[key]) if key in line.ours else "" for key in ours]
        figures = [line.row.paper.get(key) for key in papers]
        if line.missing:
            name += f" ({line.missing})"
        name = " ".join(name.replace("|", r"\|").split())  # a reason is anybody's text
        rows.append([name, *cells, *("" if figure is None else f"{figure:g}" for figure in figures)])
    seeds = about["seeds"]
    spread = f"; mean ± standard deviation over {seeds} seeds" if seeds > 1 else "; one seed"
    text = [
        f"# {table.title}",
        "",
        f"`hardpatch study {table.name}`, scale {about['scale']}: {about['scale_about']}.",
        f"Top-1 accuracies in percent{spread}. The paper's default row is bold.",
        "",
        *(f"| {' | '.join(cells)} |" for cells in (header, ["---", *["---:"] * (len(header) - 1)], *rows)),
        "",
        f"The paper's figures were measured on ImageNet-1K with ViT-B/16. {table.source.strip()}",
        "",
    ]
    return "\n".join(text)


def as_json(table: Table, lines: Sequence[Line], about: Mapping[str, Any]) -> dict[str, Any]:
    """The same for programs; our accuracies are fractions, the paper's percent."""
    return {
        "table": table.name,
        "title": table.title,
        **about,
        "hardpatch": __version__,
        "paper_source": table.source,
        "rows": [
            {
                "name": line.row.name,
                "key": line.row.key,
                "default": line.row.default,
                "settings": {**table.base, **line.row.settings},
                "length": line.row.length,
                "large": line.row.large,
                "keep": line.row.keep,
                "ours": {
                    key: {"mean": figure.mean, "std": figure.std, "seeds": len(figure.values), "values": figure.values}
                    for key, figure in line.ours.items()
                },
                "paper_per_cent": dict(line.row.paper),
                "missing": line.missing or None,
            }
            for line in lines
        ],
    }


def draw(out: Path, table: Table, lines: Sequence[Line], about: Mapping[str, Any]) -> Path | None:
    """The picture ``table.png``: a panel for each quantity, a dot a row, bars of one standard deviation.

    Returns:
        The picture, or None where nothing is measured yet.
    """
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import MaxNLocator

    ours, papers = _columns(lines)
    if not ours:
        return None
    panels = [(METRICS[key], LINES[0], [_point(line.ours.get(key)) for line in lines]) for key in ours]
    panels += [
        (f"paper's {METRICS[key]} (ImageNet-1K)", LINES[1], [_of_paper(line.row.paper.get(key)) for line in lines])
        for key in papers
    ]
    # In inches, fixed by hand, as in the other figures: nothing overlaps and no layout is searched for.
    names, panel, gap, foot, head, pitch = 0.085 * max(len(line.row.name) for line in lines), 2.7, 0.3, 0.5, 0.95, 0.3
    width, height = 0.2 + names + len(panels) * (panel + gap), head + pitch * len(lines) + foot
    canvas = Canvas(figsize=(width, height), dpi=130, facecolor="white")
    left, top = 0.15 / width, 1 - 0.3 / height
    canvas.text(left, top, table.title, fontsize=11, color=INK, weight="bold")
    seeds = f"{about['seeds']} seeds, bars of one standard deviation" if about["seeds"] > 1 else "one seed"
    canvas.text(left, top - 0.2 / height, f"scale {about['scale']}, {seeds}", fontsize=8, color=INK)
    for number, (title, color, points) in enumerate(panels):
        left = 0.2 + names + number * (panel + gap)
        axes = canvas.add_axes((left / width, foot / height, panel / width, pitch * len(lines) / height))
        for place, (line, point) in enumerate(zip(lines, points, strict=True)):
            if point is not None:
                mean, std = point
                axes.errorbar(
                    mean,
                    place,
                    xerr=std or None,
                    fmt="o",
                    color=color,
                    markersize=7 if line.row.default else 5,
                    markerfacecolor=color if line.row.default else "white",
                    markeredgewidth=1.4,
                    capsize=3,
                    linewidth=1.2,
                )
            elif number < len(ours) and not line.ours:
                axes.text(0.5, place, "not run", transform=axes.get_yaxis_transform(), fontsize=8, color=INK)
        axes.set_ylim(len(lines) - 0.5, -0.5)
        known = [point for point in points if point is not None]
        if len(known) == 1 or (known and len({mean for mean, _ in known}) == 1):
            axes.set_xlim(known[0][0] - 1, known[0][0] + 1)
        else:
            axes.margins(x=0.12)
        axes.set_yticks(range(len(lines)), [line.row.name for line in lines] if number == 0 else [""] * len(lines))
        for label, line in zip(axes.get_yticklabels(), lines, strict=True):
            label.set_fontweight("bold" if line.row.default else "normal")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_title(title, fontsize=9, color=INK, loc="left")
        axes.set_xlabel("top-1, %", fontsize=8, color=INK)
        axes.tick_params(labelsize=8, colors=INK, length=0)
        axes.grid(color=FAINT, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[:].set_visible(False)
    path = out / "table.png"
    partial = out / ".table.partial.png"
    canvas.savefig(partial)
    os.replace(partial, path)
    return path


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _columns(lines: Sequence[Line]) -> tuple[list[str], list[str]]:
    """Keys of what was measured, and of what the paper gives."""
    ours = [key for key in METRICS if any(key in line.ours for line in lines)]
    return ours, [key for key in METRICS if any(line.row.paper.get(key) is not None for line in lines)]


def _point(figure: Figure | None) -> tuple[float, float] | None:
    return None if figure is None else (100 * figure.mean, 100 * (figure.std or 0.0))


def _of_paper(per_cent: float | None) -> tuple[float, float] | None:
    return None if per_cent is None or not math.isfinite(per_cent) else (per_cent, 0.0)


README = """# {table.title}

Made by `{command}` (hardpatch {version}).

- scale {scale}: {scale_about}
- seeds a row: {seeds}
- trained on `{data}`, votes and linear probe from `{train}`, judged on `{val}`

The same command goes on where it was stopped and leaves alone what is done.

| file | what |
|---|---|
| `table.md` | the table, with the paper's figures beside it |
| `table.json` | the same for programs, with the values of every seed |
| `table.png` | the same as a picture |
| `ROW/seed_K/` | a run: `hardpatch info`, `knn`, `linear` and `score` take it, `pretrain --resume --out` draws it |
| `ROW/seed_K/result.json` | what was measured of it, all k and all learning rates |

k-NN is of the best k and the linear probe of the best learning rate, chosen on the images that the row is judged on, as
is the custom.
"""
