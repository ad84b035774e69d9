"""The verb view."""

from hardpatch.cli.arguments import (
    Parser,
    architecture_of,
    column_arguments,
    image_arguments,
    normalize_argument,
    number,
    weights_arguments,
)


def view(arguments: list[str]) -> int:
    """Run ``hardpatch view`` until it is interrupted, and return the exit code."""
    parser = Parser(
        "view",
        "Serve a page on this machine that shows images as a run sees them: drop an image, see its difficulty and its "
        "true loss, and move mask ratio, alpha and mask; mask and reconstruction follow. Needs pip install "
        "'hardpatch[view]'.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", help="run folder or weights with a decoder; two are compared")
    parser.add_argument(
        "--set",
        dest="images",
        metavar="IMAGES",
        nargs="+",
        help="files, folders, Parquet files, demo:test: images to choose from, and to search for neighbors",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", metavar="NAME", help="address to listen on (default: %(default)s, this machine)"
    )
    parser.add_argument(
        "--port", type=number("port"), metavar="N", help="port to listen on (default: the first free one from 7860)"
    )
    normalize_argument(parser)
    image_arguments(parser, max_bad_fraction=1.0)
    column_arguments(parser, ("image",))
    weights_arguments(parser, ())
    options = parser.parse_args(arguments)
    architecture = architecture_of(options)

    from hardpatch.train.log import show_log
    from hardpatch.train.progress import counting
    from hardpatch.view.run import view as serve

    show_log()
    with counting("images encoded") as progress:
        serve(**vars(options), architecture=architecture, progress=progress, started=_say)
    return 0


def _say(address: str) -> None:
    print(f"open {address} (Ctrl-C ends it)", flush=True)
