"""The verb score."""

from pathlib import Path

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
from hardpatch.errors import shown


def difficulty_arguments(parser: Parser) -> None:
    """Add RUN, IMAGES, --masks, --mask_ratio, --draws, --predict and --normalize_pixels."""
    parser.add_argument("run", metavar="RUN", help="run folder, or weights of timm, Hugging Face, MAE, DINO")
    parser.add_argument("images", metavar="IMAGES", nargs="+", help="files, folders, Parquet files, demo:test")
    parser.add_argument(
        "--masks",
        metavar="DIR",
        type=Path,
        help="object masks with the file stems of the images, to measure the area under the ROC curve",
    )
    parser.add_argument(
        "--mask_ratio", type=number("mask_ratio"), metavar="R", help="fraction of masked patches (default: the run's)"
    )
    parser.add_argument(
        "--draws",
        type=number("draws"),
        default=10,
        metavar="N",
        help="random masks that the true loss is averaged over (default: %(default)s)",
    )
    parser.add_argument(
        "--predict",
        choices=("whole", "masked"),
        help="which prediction to use as the difficulty map: the teacher's for the whole image, or the student's for "
        "each patch where it is masked (default: the one that the run mined by)",
    )
    normalize_argument(parser)


def print_areas(predicted: float | None, true_loss: float | None) -> None:
    """Print the areas under the ROC curve against object masks, as far as there are any."""
    against = "area under the ROC curve of {} against the object masks: {:.3f}"
    if predicted is not None and true_loss is not None:
        print(f"{against.format('predicted difficulty', predicted)} (of the true loss: {true_loss:.3f})")
    elif true_loss is not None:
        print(against.format("the true loss", true_loss))


def score(arguments: list[str]) -> int:
    """Run ``hardpatch score`` and return the exit code."""
    parser = Parser(
        "score",
        "Show and measure predicted difficulty and true loss of every patch of images (the paper's Fig. 2). "
        "A run without loss predictor, as a plain MAE, has the true loss only.",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for pictures and scores.parquet")
    difficulty_arguments(parser)
    parser.add_argument(
        "--pictures",
        type=number("pictures"),
        default=32,
        metavar="N",
        help="images that get a picture; all get numbers (default: %(default)s)",
    )
    parser.add_argument(
        "--show",
        nargs="+",
        metavar="C",
        help="one or three channels that pictures show, as 3 or 3,2,1, counted from 0 (default: all; of more "
        "than 3 the first three)",
    )
    parser.add_argument(
        "--seed", type=number("seed"), default=0, metavar="N", help="seed of the masks (default: %(default)s)"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the summary to this file, too")
    image_arguments(parser, batch_size=32, max_bad_fraction=1.0)
    column_arguments(parser, ("image",))
    weights_arguments(parser, ())
    options = parser.parse_args(arguments)
    words = [part for word in options.show or () for part in word.split(",")]  # 3 2 1 or 3,2,1
    if not all(word.isdecimal() and len(word) < 6 for word in words):
        parser.error(f"--show: expected numbers of channels, counted from 0, got {shown(' '.join(options.show))}")

    from hardpatch.evaluate.difficulty import score as measure
    from hardpatch.measure.score_files import NO_PREDICTOR
    from hardpatch.train.log import show_log
    from hardpatch.train.progress import counting

    show_log()
    architecture = architecture_of(options)
    settings = vars(options).copy()
    del settings["json"]
    settings["show"] = [int(word) for word in words] or None
    with counting("images scored") as progress:
        result = measure(**settings, architecture=architecture, progress=progress)
    print(f"images: {result.images}, left out: {len(result.bad)}")
    if not result.has_predictor:
        print(NO_PREDICTOR)
    if result.spearman is not None:
        print(f"Spearman correlation of predicted and true loss: {result.spearman:.3f} (mean over images)")
    print_areas(result.auc, result.true_loss_auc)
    print(f"pictures: {result.contact_sheet} and {len(result.pictures)} of single images")
    print(f"numbers: {result.table}")
    if options.json is not None:
        write_json(options.json, result.to_dict())
    return 0
