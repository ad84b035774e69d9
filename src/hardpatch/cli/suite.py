"""hardpatch evaluate."""

import json
from pathlib import Path

from hardpatch.cli.arguments import Parser, write_json
from hardpatch.errors import UserError


def evaluate(arguments: list[str]) -> int:
    parser = Parser("evaluate", "Several measurements of one run, on several data sets, as one table.")
    parser.add_argument("run", metavar="RUN", help="run folder, .safetensors file or reference checkpoint")
    parser.add_argument(
        "--suite", metavar="FILE", required=True, help="a YAML list of measurements; see docs/suites.md"
    )
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder of the results")
    options = parser.parse_args(arguments)

    from hardpatch.cli import main
    from hardpatch.study import suite as suites

    suite = suites.read_suite(options.suite)
    out: Path = options.out
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: expected a folder that can be written, got {out}: {error.strerror}") from None
    results: list[tuple[suites.Measurement, dict[str, float] | str]] = []
    for measurement in suite:
        trains = measurement.verb in suites.FILES
        place = out / measurement.key
        file = place / suites.FILES[measurement.verb] if trains else place.with_name(f"{place.name}.json")
        if not file.is_file():  # what is done is not done again
            where = ["--out", str(place)] if trains else ["--json", str(file)]
            resumed = ["--resume"] if (place / "config.yaml").is_file() else []
            code = main([measurement.verb, options.run, *measurement.arguments, *where, *resumed])
            if code >= 128 or code == 130:
                return code
        found = suites.numbers_of(measurement.verb, json.loads(file.read_text())) if file.is_file() else "see above"
        results.append((measurement, found))
        table = suites.markdown(options.run, results)
        (out / "table.md").write_text(table, encoding="utf-8")
        write_json(
            out / "table.json",
            {"run": options.run, "results": [{"name": m.name, "verb": m.verb, "found": f} for m, f in results]},
        )
    print(table, end="")
    print(f"table: {out / 'table.md'} and table.json")
    return 1 if any(isinstance(found, str) for _, found in results) else 0
