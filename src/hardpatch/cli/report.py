"""The verb report."""

from pathlib import Path

from hardpatch.cli.arguments import Parser
from hardpatch.errors import UserError
from hardpatch.printable import printable, say


def report(arguments: list[str]) -> int:
    """Run ``hardpatch report`` and return the exit code."""
    parser = Parser("report", "Write runs as one HTML page without network: curves, pictures, results, settings.")
    parser.add_argument("runs", metavar="RUN", nargs="+", type=Path, help="run folder; several stand side by side")
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="new .html file; must not exist")
    options = parser.parse_args(arguments)

    from hardpatch.page.folder import check_run

    out: Path = options.out
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out: expected a file that ends in .html, got {out}")
    if out.exists() or out.is_symlink():
        raise UserError(f"--out: {out} exists and is never overwritten; choose a new name")
    if not out.parent.is_dir():
        raise UserError(f"--out: expected a file in a folder that exists, {out.parent} is none")
    seen = set[Path]()
    for run in options.runs:
        check_run(run)
        if run.resolve() in seen:
            raise UserError(f"RUN: {run} is named twice; name each run once")
        seen.add(run.resolve())

    from hardpatch.page.write import write_report

    found = write_report(options.runs, out)
    for run in found.runs:
        for note in run.notes:
            say(f"{printable(str(run.folder))}: {note}", error=True)
    count = len(found.runs)
    print(f"{out}: {count} run{'s' if count > 1 else ''}, {found.bytes / 1e6:.2f} MB")
    return 0
