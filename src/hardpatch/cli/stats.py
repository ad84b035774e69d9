"""The verb stats."""

from hardpatch.cli.arguments import Parser, show_json, whole_set_arguments
from hardpatch.printable import printable


def stats(arguments: list[str]) -> int:
    """Run ``hardpatch stats`` and return the exit code."""
    parser = Parser("stats", "Measure all images in one pass: mean, deviation and range, and the settings that fit.")
    whole_set_arguments(parser)
    options = parser.parse_args(arguments)

    from hardpatch.check.stats import stats as measure
    from hardpatch.train.log import show_log
    from hardpatch.train.progress import counting

    show_log()
    with counting("images measured") as progress:
        chosen = {name: value for name, value in vars(options).items() if name not in ("path", "json")}
        found = measure(options.path, **chosen, progress=progress)
    if show_json(options.json, found.to_dict()):
        return 0
    low, high = found.range
    lines = {
        "images": f"{found.images} of {found.channels} channels, kept as {found.dtype}",
        "range": f"{low:g} to {high:g} become 0 to 1",
        "mean": _numbers(found.mean),
        "std": _numbers(found.std),
        "not finite": f"{found.missing} values are NaN or infinite",
        "negative": f"{found.negative} values are negative",
    }
    if found.percentiles:
        ordered = sorted(found.percentiles.items(), key=lambda item: float(item[0]))
        lines["percentiles"] = ", ".join(f"{name} %: {value:g}" for name, value in ordered)
    if found.broken:
        lines["broken"] = f"{len(found.broken)} images cannot be decoded and are not counted; the first: "
        lines["broken"] += found.broken[0]
    for name, text in lines.items():
        print(f"{name:<12} {printable(text)}")
    print(" ".join(found.settings()))
    return 0


def _numbers(values: list[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)
