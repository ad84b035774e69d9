"""The verb shard."""

from pathlib import Path
from typing import get_args

from hardpatch.choices import EncodingName
from hardpatch.cli.arguments import Parser, column_arguments, number, workers, write_json


def shard(arguments: list[str]) -> int:
    """Run ``hardpatch shard`` and return the exit code."""
    options = _parser().parse_args(arguments)

    import logging

    from hardpatch.data.columns import Columns
    from hardpatch.data.left_out import counts
    from hardpatch.data.shard import check_shard_folder
    from hardpatch.data.shard import shard as write
    from hardpatch.data.sources import open_images
    from hardpatch.data.summary import summarize
    from hardpatch.data.workers import resolve_workers
    from hardpatch.train.log import show_log
    from hardpatch.train.progress import counting

    show_log()
    check_shard_folder(options.out)
    source = open_images(options.images, Columns(options.image_column, options.label_column))
    logging.getLogger("hardpatch").info("IMAGES: %s", summarize(source))
    with counting("images packed") as progress:
        result = write(
            source,
            options.out,
            side=options.side,
            encoding=options.encode,
            images_per_shard=options.images_per_shard,
            workers=resolve_workers(options.workers),
            max_bad_fraction=options.max_bad_fraction,
            progress=progress,
        )
    files = sum(done.images > 0 for done in result.shards)
    if options.json is not None:
        values = {"verb": "shard", "data": options.images, "images": result.images}
        values["left_out"] = counts(source.skipped, len(result.bad))
        values |= {"out": str(options.out), "files": files, "bytes": result.bytes, "endings": result.endings}
        write_json(options.json, values)
    endings = ", ".join(f"{count} {ending}" for ending, count in sorted(result.endings.items()))
    before = f", {result.resumed} of them by an earlier call" if result.resumed else ""
    print(
        f"{options.out}: {result.images} images ({endings}) in {files} shards{before}, {result.bytes / 1e6:.1f} MB, "
        f"left out: {len(result.bad)}; read back and equal, checksums in manifest.json"
    )
    return 0


def _parser() -> Parser:
    parser = Parser(
        "shard", "Pack images into tar shards (WebDataset); after an interruption the same command goes on."
    )
    parser.add_argument("images", metavar="IMAGES", nargs="+", help="files, folders, Parquet files, demo:train")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="new folder, or one that was begun")
    parser.add_argument(
        "--side",
        "--size",
        metavar="N",
        type=number("side"),
        help="resize larger images to this length of the shorter side in pixels (default: leave their size)",
    )
    parser.add_argument(
        "--encode",
        choices=get_args(EncodingName),
        default="keep",
        help="encoding; keep copies files that are not resized, and writes others as JPEG; images that an encoding "
        "cannot hold, as 16 bits in a JPEG, become TIFFs (default: %(default)s)",
    )
    parser.add_argument(
        "--images_per_shard",
        metavar="N",
        type=number("images_per_shard"),
        default=1000,
        help="images of each shard (default: %(default)s)",
    )
    parser.add_argument(
        "--workers", type=workers, default="auto", metavar="N", help="processes that pack shards (default: auto)"
    )
    parser.add_argument(
        "--max_bad_fraction",
        type=number("max_bad_fraction"),
        default=0.1,
        metavar="X",
        help="largest fraction of images that may fail to decode; they are named and left out (default: %(default)s)",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the result to this file, too")
    column_arguments(parser)
    return parser
