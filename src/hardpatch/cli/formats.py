"""The verb formats, which only prints."""

from hardpatch.cli.arguments import Parser, json_argument, show_json


def formats(arguments: list[str]) -> int:
    """Run ``hardpatch formats`` and return the exit code."""
    parser = Parser("formats", "List the formats of images, and what this installation reads them with.")
    json_argument(parser)
    options = parser.parse_args(arguments)

    from hardpatch.data.formats import formats as found

    listed = found()
    if show_json(options.json, {"formats": [format._asdict() for format in listed]}):
        return 0
    rows = [
        (format.name, "yes" if format.installed else "no", " ".join(format.extensions), format.package, format.install)
        for format in listed
    ]
    rows.insert(0, ("format", "read", "extensions", "by", "to install"))
    widths = [max(len(row[k]) for row in rows) for k in range(4)]
    for row in rows:
        print("  ".join([*(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)), row[4]]).rstrip())
    return 0
