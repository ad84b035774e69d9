"""The verb predict."""

from pathlib import Path

from hardpatch.cli.arguments import Parser, column_arguments, image_arguments, number, write_json


def predict(arguments: list[str]) -> int:
    """Run ``hardpatch predict`` and return the exit code."""
    parser = Parser(
        "predict",
        "Write what a run of finetune, segment or detect predicts for images: the most probable classes of each as "
        "Parquet or CSV, label maps as a folder of PNG files, or objects as COCO JSON.",
    )
    parser.add_argument("run", metavar="RUN", help="run folder of finetune, segment or detect, or its weights file")
    parser.add_argument("images", metavar="IMAGES", nargs="+", help="files, folders, Parquet files, demo:test")
    parser.add_argument(
        "--out",
        metavar="FILE",
        type=Path,
        required=True,
        help="new .parquet or .csv file (classifier), folder (segmenter) or .json file (detector); must not exist",
    )
    parser.add_argument(
        "--top",
        type=number("top"),
        default=5,
        metavar="N",
        help="most probable classes of an image that a classifier writes (default: %(default)s)",
    )
    parser.add_argument(
        "--pictures",
        type=number("pictures"),
        default=0,
        metavar="N",
        help="images that get a picture with their prediction, beside FILE (default: %(default)s)",
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "bf16", "fp16"),
        default="auto",
        help="precision of the network; auto is bf16 on a CUDA GPU, else fp32 (default: %(default)s)",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the result to this file, too")
    image_arguments(parser, batch_size=32, max_bad_fraction=1.0)
    column_arguments(parser)
    options = parser.parse_args(arguments)

    from hardpatch.predict.run import predict as write
    from hardpatch.train.log import show_log
    from hardpatch.train.progress import counting

    show_log()
    settings = vars(options).copy()
    del settings["json"]
    with counting("images predicted") as progress:
        result = write(**settings, progress=progress)
    found = f", {result.values['objects']} objects" if result.kind == "detector" else ""
    print(f"{result.path}: {result.kind}, {result.images} images{found}, left out: {result.left_out}")
    if result.pictures is not None:
        print(f"pictures: {result.pictures}")
    if result.values.get("labeled"):
        top1, top5 = result.values["top1"], result.values["top5"]
        print(f"top-1 {top1:.2%}, top-5 {top5:.2%} of {result.values['labeled']} images by their labels")
    if options.json is not None:
        write_json(options.json, result.values)
    return 0
