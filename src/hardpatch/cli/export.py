"""The verb export."""

import math
from pathlib import Path
from typing import TYPE_CHECKING

from hardpatch.cli.arguments import Parser, number, write_json
from hardpatch.errors import UserError

if TYPE_CHECKING:
    from hardpatch.export.run import ExportResult


def export(arguments: list[str]) -> int:
    """Run ``hardpatch export`` and return the exit code."""
    options = _parser().parse_args(arguments)
    if options.form is not None and options.to != "hf":
        raise UserError(f"--form: only --to hf has forms, got --to {options.to}; leave it out")
    if options.form != "vit_mae" and (options.decoder_heads or options.normalize_pixels):
        raise UserError("--decoder_heads, --normalize_pixels: only --form vit_mae has a decoder; leave them out")

    from hardpatch.export.run import export_hugging_face, export_timm

    if options.to == "timm":
        written = export_timm(options.run, options.out, options.weights, heads=options.heads)
    else:
        written = export_hugging_face(
            options.run,
            options.out,
            options.weights,
            form=options.form or "vit",
            heads=options.heads,
            decoder_heads=options.decoder_heads,
            normalize_pixels=options.normalize_pixels,
        )
    if options.json is not None:
        _write(options.json, options.run, written)
    print(f"{written.path}: written; load it with")
    print(f"  {written.code}")
    if written.not_from_files is None:
        mode = "RGB" if len(written.mean) == 3 else "L"
        print(f"and prepare images, opened with Pillow in mode {mode}, with")
        print(f"  {written.preprocessing}")
    _print_images(written)
    _print_differences(written, {"timm": "timm", "hf": "transformers"}[options.to])
    return 0


def _write(path: Path, run: str, written: "ExportResult") -> None:
    nested = {
        "difference": written.difference and written.difference._asdict(),
        "files": written.files and written.files._asdict(),
    }
    write_json(
        path, {"verb": "export", "run": run, **written._asdict(), **nested, "reading": written.reading.to_dict()}
    )


def _print_images(written: "ExportResult") -> None:
    from hardpatch.measure.labels import crop_fraction

    height, width = written.image_size
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (written.mean, written.std))
    if written.reading.dtype != "uint8" or written.reading.ranged:
        low, high = (
            ", ".join(f"{value:g}" for value in values) for values in (written.reading.low, written.reading.high)
        )
        print(f"pixels: {written.reading.dtype}, (value - {low}) / ({high} - {low}), cut off at 0 and 1: do this first")
    fraction = crop_fraction(written.image_size)
    cover = "" if fraction == 1 else f"the center of {math.floor(height / fraction)} x {math.floor(width / fraction)}, "
    print(f"images: {height} x {width}, {cover}pixels in [0, 1] normalized with mean {mean}, standard deviation {std}")


def _print_differences(written: "ExportResult", library: str) -> None:
    if written.difference is None:
        print(f"{library} is not installed, so neither its outputs nor its preprocessing were compared with ours")
        return
    real = "" if written.difference.real is None else f", {written.difference.real:.1e} on real images"
    print(
        f"largest difference of outputs: {written.difference.random:.1e} on a random image{real} "
        f"(outputs up to {written.difference.largest:.1f})"
    )
    if written.files is None:
        print(f"not checked from image files: with {library}'s own preprocessing, {written.not_from_files}")
        return
    kinds = "a PNG and a JPEG file" if len(written.mean) == 3 else "a gray PNG and a gray JPEG file"
    largest = max(written.files.png, written.files.jpeg)
    print(f"checked from {kinds}: largest difference {largest:.1g} of the largest feature ({written.files.library})")


def _parser() -> Parser:
    parser = Parser(
        "export", "Write weights for timm or Hugging Face transformers, load them there and compare the features."
    )
    parser.add_argument("run", metavar="RUN", help="run folder, .safetensors file or another library's checkpoint")
    parser.add_argument(
        "--to", choices=("timm", "hf"), required=True, help="format: timm writes a folder or a file, hf a folder"
    )
    parser.add_argument(
        "--out",
        metavar="PATH",
        type=Path,
        required=True,
        help="new folder; with --to timm also a new .safetensors file",
    )
    parser.add_argument(
        "--weights",
        choices=("student", "teacher"),
        default="student",
        help="weights of RUN to export (default: %(default)s)",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the result to this file, too")
    parser.add_argument(
        "--form",
        choices=("vit", "vit_mae"),
        help="with --to hf: vit is the encoder alone, vit_mae includes the reconstructor of host mae (default: vit)",
    )
    architecture = parser.add_argument_group("architecture, which checkpoints of other libraries do not contain")
    architecture.add_argument("--heads", type=number("heads"), metavar="N", help="attention heads of the encoder")
    architecture.add_argument(
        "--decoder_heads",
        type=number("decoder_heads"),
        metavar="N",
        help="with --form vit_mae: attention heads of the decoder",
    )
    architecture.add_argument(
        "--normalize_pixels",
        action="store_true",
        help="with --form vit_mae: the model was trained on pixels normalized per patch",
    )
    return parser
