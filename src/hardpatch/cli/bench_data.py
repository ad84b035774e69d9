"""The verb bench data."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from hardpatch.cli.arguments import Images, Parser, column_arguments, number, number_in, write_json
from hardpatch.errors import UserError
from hardpatch.ranges import WORKERS, check_options


def bench_data(arguments: list[str]) -> int:
    """Run ``hardpatch bench data`` and return the exit code."""
    options = _parser().parse_args(arguments)
    check_options(crop_scale=options.crop_scale)

    import logging

    import torch

    from hardpatch.bench.data_loading import measure_loading
    from hardpatch.bench.timing import device_name
    from hardpatch.data.augment import TrainTransform
    from hardpatch.data.columns import Columns
    from hardpatch.data.reading import Reading
    from hardpatch.data.sources import open_source
    from hardpatch.data.summary import summarize
    from hardpatch.data.workers import cores
    from hardpatch.train.device import use_device
    from hardpatch.train.log import show_log
    from hardpatch.train.progress import counting

    show_log()
    device = use_device(options.device)
    try:
        source = open_source(options.data, Columns(options.image_column, options.label_column))
    except UserError as error:
        raise UserError(f"--data: {error}") from None
    transform = TrainTransform(
        (options.image_size, options.image_size),
        Reading(options.channels),
        tuple(options.crop_scale),
        shrink_on_decode=options.shrink_on_decode,
    )
    powers = [2**k for k in range(12) if 2**k < cores()]
    with counting("measurements") as progress:
        result = measure_loading(
            source,
            transform,
            device,
            batch_size=options.batch_size,
            seconds=options.seconds,
            sampled=options.images,
            workers=options.workers or [0, *powers, cores()],
            progress=progress,
        )
    logging.getLogger("hardpatch").info("--data: %s", summarize(source))
    machine = f"{device_name(device)}, {cores()} cores, torch {torch.__version__}"
    sampled = f", {result.sampled} of them measured" if result.sampled < result.images else ""
    height, width = result.size
    print(f"{machine}\n{result.images} images{sampled}, {height} x {width} on average, to {options.image_size} px\n")
    print(result.to_markdown(), end="")
    if options.json is not None:
        settings = {"data": options.data, "image_size": options.image_size, "batch_size": options.batch_size}
        write_json(options.json, {"machine": machine, **settings, **result.to_dict()})
    return 0


def _parser() -> Parser:
    parser = Parser("bench data", "Measure images per second of each stage of data loading, and name the bottleneck.")
    parser.add_argument(
        "--data",
        metavar="PATH",
        nargs="+",
        action=Images,
        help="images, as for pretrain (default: demo:train, the embedded set)",
    )
    parser.add_argument(
        "--image_size",
        type=number("image_size"),
        default=224,
        metavar="N",
        help="side of a crop in pixels (default: %(default)s)",
    )
    parser.add_argument(
        "--channels", type=int, choices=(1, 3), default=3, help="1 is gray, 3 is RGB (default: %(default)s)"
    )
    parser.add_argument(
        "--crop_scale",
        type=number("crop_scale"),
        nargs=2,
        default=(0.2, 1.0),
        metavar=("LOW", "HIGH"),
        help="area of a crop, as a fraction of the image (default: 0.2 1)",
    )
    parser.add_argument(
        "--shrink_on_decode",
        type=_factor,
        default=2.0,
        metavar="X",
        help="as the setting data.shrink_on_decode; null never shrinks (default: %(default)s)",
    )
    _add_measurement(parser)
    column_arguments(parser)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the numbers to this file, too")
    return parser


def _add_measurement(parser: Parser) -> None:
    """Add the options that say how much is measured."""
    parser.add_argument(
        "--batch_size",
        type=number("batch_size"),
        default=256,
        metavar="N",
        help="images per batch (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds",
        type=number("seconds"),
        default=3.0,
        metavar="X",
        help="duration of each measurement (default: %(default)s)",
    )
    parser.add_argument(
        "--images",
        type=number("images"),
        default=2000,
        metavar="N",
        help="images that are drawn from a larger set (default: %(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=number_in(replace(WORKERS, note="")),
        nargs="+",
        metavar="N",
        help="numbers of decoding processes to try (default: 0, 1, 2, 4, ... and all cores)",
    )


def _factor(text: str) -> Any:
    """Parse a number from 1, or null."""
    return None if text == "null" else number("shrink_on_decode")(text)
