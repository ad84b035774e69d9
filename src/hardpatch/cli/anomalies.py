"""The verb anomalies."""

from pathlib import Path

from hardpatch.cli.arguments import Parser, number, write_json
from hardpatch.cli.rank import loss_arguments, parsed


def anomalies(arguments: list[str]) -> int:
    """Run ``hardpatch anomalies`` and return the exit code."""
    parser = Parser(
        "anomalies",
        "Find defects: score each patch of images by how much harder it is to reconstruct than the same place of "
        "normal images, and draw heat maps. If it is interrupted, run the same command to resume.",
    )
    parser.add_argument(
        "--train", metavar="IMAGES", required=True, help="normal images, best those that RUN was trained on"
    )
    parser.add_argument(
        "--masks",
        metavar="DIR",
        type=Path,
        help="masks of the defects with the file stems of the images, black but on a defect, to measure areas under "
        "the ROC curve; images without a mask count as normal",
    )
    parser.add_argument(
        "--pictures",
        type=number("pictures"),
        default=32,
        metavar="N",
        help="images that get a heat map, those of the highest scores (default: %(default)s)",
    )
    loss_arguments(parser, draws=8)
    settings = parsed(parser, arguments)

    from hardpatch.rank.anomalies import anomalies as measure
    from hardpatch.rank.areas import KINDS
    from hardpatch.train.log import show_log
    from hardpatch.train.progress import counting

    show_log()
    json_file = settings.pop("json")
    with counting("images measured") as progress:
        result = measure(**settings, progress=progress)
    values = result.values
    print(f"images: {values['images']['images']}, left out: {result.left_out}; normal: {values['images']['train']}")
    print(f"images with a higher score than every normal one: {values['above_all_normal']}")
    if result.areas is not None:
        print("area under the ROC curve against the masks, per pixel and per image:")
        for name, words in KINDS.items():
            image = result.areas.image[name]
            print(f"  {result.areas.pixel[name]:.3f}  {'  -  ' if image is None else f'{image:.3f}'}  {words}")
    elif settings["masks"] is not None:
        print("no area under the ROC curve: no pixel of the masks belongs to a defect, or all do")
    print(f"heat maps: {result.out / 'heat_maps.png'} and {values['pictures']} of single images")
    print(f"table: {result.table}")
    if json_file is not None:
        write_json(json_file, values)
    return 0
