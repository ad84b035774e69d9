"""The verb evaluate."""

import json
from pathlib import Path
from typing import Any

from hardpatch.cli.arguments import Parser, column_arguments, weights_arguments, write_json
from hardpatch.files import write_text_atomically


def evaluate(arguments: list[str]) -> int:
    """Run ``hardpatch evaluate`` and return the exit code."""
    parser = Parser(
        "evaluate", "Make several measurements of one run, on several data sets, and write them as one table."
    )
    parser.add_argument("run", metavar="RUN", help="run folder, or weights of timm, Hugging Face, MAE, DINO")
    parser.add_argument("--suite", metavar="FILE", required=True, help="YAML file, a list of measurements")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for the results")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the table to this file, too")
    column_arguments(parser)
    weights_arguments(parser, ())
    options = parser.parse_args(arguments)

    from hardpatch.study import suite as suites
    from hardpatch.train.lock import locked

    columns = {"image_column": options.image_column, "label_column": options.label_column}
    suite = suites.read_suite(options.suite, columns)
    out: Path = options.out
    with locked(out):
        return _measure(options, suite, out)


def _measure(options: Any, suite: Any, out: Path) -> int:
    """Make the measurements that are not done; returns the exit code."""
    from hardpatch.cli import main
    from hardpatch.study import suite as suites

    results: list[tuple[suites.Measurement, dict[str, float] | str]] = []
    for measurement in suite:
        trains, folder = measurement.trains, out / measurement.key
        file = folder / "result.json" if trains else out / f"{measurement.key}.json"
        if not file.is_file():
            output = ["--out", str(folder)] if trains else ["--json", str(file)]
            resume = ["--resume", "--extend", "no"] if (folder / "config.yaml").is_file() else []
            said = _said(options, trains=trains)
            code = main([measurement.verb, options.run, *measurement.arguments, *said, *output, *resume])
            if code >= 128:  # a signal stopped it
                return code
        if file.is_file():
            results.append((measurement, suites.table_values(measurement.verb, json.loads(file.read_text()))))
        else:
            results.append((measurement, "see the error message on the terminal"))
        table = suites.markdown(options.run, results)
        write_text_atomically(out / "table.md", table)
        values = {"run": options.run, "results": [{"name": m.name, "verb": m.verb, "result": r} for m, r in results]}
        write_json(out / "table.json", values)
    if options.json is not None:
        write_json(options.json, values)
    print(table, end="")
    print(f"table: {out / 'table.md'} and table.json")
    return 1 if any(isinstance(result, str) for _, result in results) else 0


def _said(options: Any, *, trains: bool) -> list[str]:
    """Return the options about weights of other libraries for the command line of a measurement.

    One that trains uses no decoder.
    """
    names = ["heads"] if trains else ["heads", "decoder_heads"]
    said = [f"--{name}={value}" for name in names if (value := getattr(options, name)) is not None]
    return said + (["--trained_size", *map(str, options.trained_size)] if options.trained_size else [])
