"""The verb shrink."""

from pathlib import Path

from hardpatch.cli.arguments import Parser, column_arguments, number, workers, write_json


def shrink(arguments: list[str]) -> int:
    """Run ``hardpatch shrink`` and return the exit code."""
    parser = Parser("shrink", "Write smaller copies of images into Parquet files, which load faster.")
    parser.add_argument("images", metavar="IMAGES", nargs="+", help="files, folders, Parquet files, demo:train")
    parser.add_argument(
        "--side",
        metavar="N",
        type=number("side"),
        default=256,
        help="length of the shorter side in pixels (default: %(default)s)",
    )
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="new folder; must not exist")
    parser.add_argument(
        "--workers", type=workers, default="auto", metavar="N", help="processes that decode images (default: auto)"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the result to this file, too")
    column_arguments(parser)
    options = parser.parse_args(arguments)

    import logging

    from hardpatch.data.bad_files import BadFiles
    from hardpatch.data.columns import Columns
    from hardpatch.data.left_out import counts
    from hardpatch.data.shrink import check_out
    from hardpatch.data.shrink import shrink as write
    from hardpatch.data.sources import open_images
    from hardpatch.data.summary import summarize
    from hardpatch.data.workers import resolve_workers
    from hardpatch.train.log import show_log
    from hardpatch.train.progress import counting

    show_log()
    check_out(options.out)
    source = open_images(options.images, Columns(options.image_column, options.label_column))
    logging.getLogger("hardpatch").info("IMAGES: %s", summarize(source))
    with counting("images resized") as progress:
        written, bad = write(
            source, options.out, options.side, workers=resolve_workers(options.workers), progress=progress
        )
    BadFiles(len(source), 1.0, source=source).update(bad)
    files = sorted(options.out.iterdir())
    size = sum(file.stat().st_size for file in files)
    if options.json is not None:
        values = {"verb": "shrink", "data": options.images, "images": written}
        values["left_out"] = counts(source.skipped, len(bad))
        write_json(options.json, {**values, "out": str(options.out), "files": len(files), "bytes": size})
    print(f"{options.out}: {written} images in {len(files)} files, {size / 1e6:.1f} MB, left out: {len(bad)}")
    return 0
