"""The verb bench data."""

import math
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
    from hardpatch.data.network import simulated_network
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
    network = simulated_network(options.latency / 1e3, options.bandwidth * 1e6)
    with network, counting("measurements") as progress:
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
    said = _network(options.latency, options.bandwidth, source)
    print(f"{said}\n\n{result.to_markdown()}" if said else result.to_markdown(), end="")
    if options.json is not None:
        settings = {"data": options.data, "latency_ms": options.latency, "bandwidth_mb": options.bandwidth}
        settings |= {"image_size": options.image_size, "batch_size": options.batch_size}
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
        "--latency",
        type=number("latency"),
        default=0.0,
        metavar="MS",
        help="simulate a network on which each read waits so many milliseconds (default: none)",
    )
    parser.add_argument(
        "--bandwidth",
        type=number("bandwidth"),
        default=math.inf,
        metavar="MB",
        help="simulate a network of so many megabytes a second for all processes together (default: no limit)",
    )
    parser.add_argument(
        "--workers",
        type=number_in(replace(WORKERS, note="")),
        nargs="+",
        metavar="N",
        help="numbers of decoding processes to try (default: 0, 1, 2, 4, ... and all cores)",
    )


def _network(latency: float, bandwidth: float, source: Any) -> str:
    """Describe the simulated network; nothing if there is none."""
    if not latency and math.isinf(bandwidth):
        return ""
    line = f"Simulated network: every read waits {latency:g} ms"
    if not math.isinf(bandwidth):
        line += f", and all processes together get {bandwidth:g} MB/s"
    groups = getattr(source, "row_groups", None)
    if groups is None:
        return f"{line}; a read is one image. Opening the set is not slowed down."
    if groups.on_disk:
        return f"{line}; a read is a row group. Opening the set is not slowed down."
    return f"{line}. These Parquet files are held in memory, so nothing is read over it but the set once, before this."


def _factor(text: str) -> Any:
    """Parse a number from 1, or null."""
    return None if text == "null" else number("shrink_on_decode")(text)
