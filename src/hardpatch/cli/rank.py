"""The verb rank."""

from pathlib import Path
from typing import Any

from hardpatch.cli.arguments import (
    Parser,
    architecture_of,
    column_arguments,
    image_arguments,
    normalize_argument,
    number,
    weights_arguments,
    write_json,
)


def loss_arguments(parser: Parser, draws: int) -> None:
    """Add RUN, IMAGES, --run and the masks of the true loss."""
    parser.add_argument(
        "images",
        metavar="IMAGES",
        nargs="+",
        help="RUN (run folder, or weights of timm, Hugging Face, MAE, DINO), then the images: files, folders, Parquet "
        "files, demo:test",
    )
    parser.add_argument("--run", metavar="RUN", help="RUN, where it does not stand before the images")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="new folder for the results")
    parser.add_argument(
        "--mask_ratio", type=number("mask_ratio"), metavar="R", help="fraction of masked patches (default: the run's)"
    )
    parser.add_argument(
        "--draws",
        type=number("draws"),
        default=draws,
        metavar="N",
        help="random masks that the true loss is averaged over, the same for every image (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=number("seed"), default=0, metavar="N", help="seed of the masks (default: %(default)s)"
    )
    normalize_argument(parser)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the summary to this file, too")
    image_arguments(parser, batch_size=32, max_bad_fraction=1.0)
    column_arguments(parser, ("image",))
    weights_arguments(parser, ())


def parsed(parser: Parser, arguments: list[str]) -> dict[str, Any]:
    """Parse what :func:`loss_arguments` added. Returns the arguments of the verb in Python, and ``json``."""
    options = parser.parse_args(arguments)
    architecture = architecture_of(options)
    settings = vars(options).copy()
    if settings["run"] is None:
        settings["run"], *settings["images"] = settings["images"]
    if not settings["images"]:
        parser.error("expected RUN and IMAGES, got one path; as in: RUN IMAGES, or IMAGES --run RUN")
    return settings | {"architecture": architecture}


def rank(arguments: list[str]) -> int:
    """Run ``hardpatch rank`` and return the exit code."""
    parser = Parser(
        "rank",
        "Rank the images of a set by their difficulty, and find near-duplicates and outliers. If it is interrupted, "
        "run the same command to resume.",
    )
    loss_arguments(parser, draws=4)
    parser.add_argument(
        "--predict",
        choices=("whole", "masked"),
        help="difficulty: the teacher's prediction for the whole image, or the student's for each patch where it is "
        "masked (default: the one that the run mined by)",
    )
    settings = parsed(parser, arguments)

    from hardpatch.rank.run import rank as measure
    from hardpatch.train.log import show_log
    from hardpatch.train.progress import counting

    show_log()
    json_file = settings.pop("json")
    with counting("images ranked") as progress:
        result = measure(**settings, progress=progress)
    values = result.values
    print(f"images: {values['images']['images']}, left out: {result.left_out}")
    for line in result.lines:
        print(line)
    if values["ranked_by"] != "outlier":
        print(f"hardest by {values['ranked_by']}: {values['highest']}; easiest: {values['lowest']}")
    if values.get("rank_correlation") is not None:
        print(f"Spearman correlation of difficulty and loss over the images: {values['rank_correlation']:.3f}")
    if "duplicates" in values:
        print("near-duplicates: {images} images in {groups} groups".format(**values["duplicates"]))
    print(f"contact sheets: {', '.join(values['sheets'])}")
    print(f"table: {result.table}")
    if json_file is not None:
        write_json(json_file, values)
    return 0
