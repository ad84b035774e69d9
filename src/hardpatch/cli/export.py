"""The verb export."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardpatch.cli.arguments import Parser, architecture_of, weights_arguments, write_json
from hardpatch.errors import UserError

if TYPE_CHECKING:
    from hardpatch.export.result import ExportResult

FORMATS = ("timm", "hf", "hf-mae", "torchvision", "reference", "onnx")
PARTS = ("encoder", "predictor", "classifier", "segmenter")


def export(arguments: list[str]) -> int:
    """Run ``hardpatch export`` and return the exit code."""
    options = _parser().parse_args(arguments)
    if options.form is not None and options.to != "hf":
        raise UserError(f"--form: only --to hf has forms, got --to {options.to}; leave it out")
    if options.part is not None and options.to != "onnx":
        raise UserError(f"--part: only --to onnx has parts, got --to {options.to}; leave it out")
    decoder = options.to in ("hf-mae", "reference") or options.form == "vit_mae"
    if not decoder and (options.decoder_heads or options.normalize_pixels):
        raise UserError(
            "--decoder_heads, --normalize_pixels: only --form vit_mae has a decoder, as hf-mae and reference; "
            "leave them out"
        )
    values: dict[str, Any] = {"form": options.form, "part": options.part, **architecture_of(options)}
    if decoder:
        values["normalize_pixels"] = options.normalize_pixels or None

    from hardpatch.export.run import export as write

    chosen = {name: value for name, value in values.items() if value is not None}
    written = write(options.run, options.to, options.out, options.weights, **chosen)
    if options.json is not None:
        _write(options.json, options.run, written)
    print(f"{written.path}: written; load it with")
    print(f"  {written.code}")
    if written.preprocessing is not None and written.not_from_files is None:
        mode = "RGB" if len(written.mean) == 3 else "L"
        print(f"and prepare images, opened with Pillow in mode {mode}, with")
        print(f"  {written.preprocessing}")
    _print_images(written)
    for line in written.report():
        print(line)
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


def _parser() -> Parser:
    parser = Parser("export", "Write weights for another library or as ONNX, load them there and compare the outputs.")
    parser.add_argument(
        "run", metavar="RUN", help="run folder, also of finetune, segment and detect, or another library's checkpoint"
    )
    parser.add_argument(
        "--to",
        choices=FORMATS,
        required=True,
        help="format: timm, hf, hf-mae (with MAE's decoder) and torchvision write a folder, reference a .pth file in "
        "the layout of HPM and MAE, onnx an .onnx file",
    )
    parser.add_argument(
        "--out",
        metavar="PATH",
        type=Path,
        required=True,
        help="new folder; with --to timm also a new .safetensors file, with reference a .pth, with onnx an .onnx file",
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the result to this file, too")
    parser.add_argument(
        "--form",
        choices=("vit", "vit_mae"),
        help="with --to hf: vit is ViTModel, into whose layers layer scale is multiplied, vit_mae the same as --to "
        "hf-mae (default: the class that holds the network as it is)",
    )
    parser.add_argument(
        "--part",
        choices=PARTS,
        help="with --to onnx: what is exported (default: the fine-tuned network, or the encoder of other weights)",
    )
    weights_arguments(parser, ("auto", "student", "teacher"))
    parser.add_argument(
        "--normalize_pixels",
        action="store_true",
        help="with --to hf-mae or reference: the model was trained on pixels normalized per patch",
    )
    return parser
