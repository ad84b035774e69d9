"""The figures of the verb study."""

import json
from pathlib import Path

from hardpatch.cli.arguments import Parser, column_arguments, image_arguments, number, write_json
from hardpatch.cli.score import difficulty_arguments, print_areas

FIGURES = ("fig2", "fig4", "figS1", "figS2")


def study_gallery(arguments: list[str]) -> int:
    """Run ``hardpatch study fig2`` or another of the paper's figures, and return the exit code."""
    figure, *rest = arguments
    options = _parser(figure).parse_args(rest)

    from hardpatch.study.gallery import draw_gallery
    from hardpatch.study.gallery_result import NO_PREDICTED_LOSS, Gallery
    from hardpatch.train.log import show_log

    show_log()
    settings = vars(options).copy()
    del settings["json"]
    result = draw_gallery(Gallery(figure=figure, arguments=tuple(arguments), **settings))
    print(f"images: {len(result.scores)} of {result.candidates} shown, left out: {len(result.bad)}")
    if not result.has_predictor:
        print(NO_PREDICTED_LOSS)
    means = result.means
    if means.get("spearman") is not None:
        print(f"Spearman correlation of predicted and true loss: {means['spearman']:.3f} (mean over images)")
    print_areas(means.get("auc"), means["true_loss_auc"])
    print(f"pictures: {', '.join(map(str, result.pictures))}")
    print(f"numbers: {options.out / 'result.json'}")
    if options.json is not None:
        write_json(options.json, json.loads((options.out / "result.json").read_text(encoding="utf-8")))
    return 0


def _parser(figure: str) -> Parser:
    panels = "image, true loss, predicted loss, hardest patches masked" if figure == "fig2" else "image, predicted loss"
    parser = Parser(f"study {figure}", f"Draw a figure of the paper as a gallery of a run: {panels}. Red is high.")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="new folder for the gallery")
    if figure == "fig2":
        parser.add_argument(
            "--predictor",
            metavar="RUN2",
            help="run whose predicted loss to show beside the true loss of RUN, such as HPM's beside MAE's",
        )
    parser.add_argument(
        "--count", type=number("count"), default=12, metavar="N", help="images, drawn at random (default: %(default)s)"
    )
    parser.add_argument(
        "--columns", type=number("columns"), metavar="N", help="images in a row (default: the figure's)"
    )
    parser.add_argument(
        "--seed",
        type=number("seed"),
        default=0,
        metavar="N",
        help="seed of masks and choice of images (default: %(default)s)",
    )
    difficulty_arguments(parser)
    image_arguments(parser, batch_size=32, max_bad_fraction=1.0)
    column_arguments(parser, ("image",))
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the numbers to this file, too")
    return parser
