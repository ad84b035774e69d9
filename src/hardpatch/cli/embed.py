"""The verb embed."""

from pathlib import Path

from hardpatch.cli.arguments import (
    Parser,
    architecture_of,
    column_arguments,
    image_arguments,
    view_arguments,
    weights_arguments,
    write_json,
)


def embed(arguments: list[str]) -> int:
    """Run ``hardpatch embed`` and return the exit code."""
    parser = Parser("embed", "Write one vector for each image into a Parquet file with the columns path and embedding.")
    parser.add_argument("run", metavar="RUN", help="run folder, or weights of timm, Hugging Face, MAE, DINO")
    parser.add_argument("images", metavar="IMAGES", nargs="+", help="files, folders, Parquet files, demo:test")
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="new Parquet file; must not exist")
    parser.add_argument(
        "--pool",
        choices=("mean", "class"),
        default="mean",
        help="mean of the patch tokens, or class token (default: %(default)s)",
    )
    weights_arguments(parser)
    parser.add_argument("--normalize", action="store_true", help="scale every vector to length 1, for cosine search")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the result to this file, too")
    view_arguments(parser)
    image_arguments(parser, max_bad_fraction=1.0)
    column_arguments(parser, ("image",))
    options = parser.parse_args(arguments)

    from hardpatch.evaluate.embed import embed as write
    from hardpatch.train.log import show_log
    from hardpatch.train.progress import counting

    show_log()
    architecture = architecture_of(options)
    settings = vars(options).copy()
    del settings["json"]
    with counting("images embedded") as progress:
        result = write(**settings, architecture=architecture, progress=progress)
    print(f"{result.path}: {result.images} vectors of {result.width} numbers, left out: {result.left_out}")
    if options.json is not None:
        write_json(options.json, result.values)
    return 0
