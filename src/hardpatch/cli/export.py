"""The verb export."""

from pathlib import Path

from hardpatch.cli.arguments import Parser, at_least_one, write_json
from hardpatch.errors import UserError


def export(arguments: list[str]) -> int:
    """Run ``hardpatch export`` and return the exit code."""
    options = _parser().parse_args(arguments)
    if options.form is not None and options.to != "hf":
        raise UserError(f"--form: only --to hf has forms, got --to {options.to}; leave it out")
    if options.form != "vit_mae" and (options.decoder_heads or options.normalize_pixels):
        raise UserError("--decoder_heads, --normalize_pixels: only --form vit_mae has a decoder; leave them out")

    from hardpatch.interchange.export import export_hugging_face, export_timm

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
        difference = None if written.difference is None else written.difference._asdict()
        write_json(
            options.json,
            {
                "verb": "export",
                "run": options.run,
                **written._asdict(),
                "difference": difference,
                "reading": written.reading.to_dict(),
            },
        )
    height, width = written.image_size
    print(f"{written.path}: written; load it with")
    print(f"  {written.code}")
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (written.mean, written.std))
    if written.reading.dtype != "uint8" or written.reading.ranged:
        low, high = (
            ", ".join(f"{value:g}" for value in values) for values in (written.reading.low, written.reading.high)
        )
        print(f"pixels: {written.reading.dtype}, (value - {low}) / ({high} - {low}), cut off at 0 and 1: do this first")
    print(f"images: {height} x {width}, pixels in [0, 1] normalized with mean {mean}, standard deviation {std}")
    if written.difference is None:
        print("transformers is not installed, so its outputs were not compared with ours")
        return 0
    real = "" if written.difference.real is None else f", {written.difference.real:.1e} on real images"
    print(
        f"largest difference of outputs: {written.difference.random:.1e} on a random image{real} "
        f"(outputs up to {written.difference.largest:.1f})"
    )
    return 0


def _parser() -> Parser:
    parser = Parser(
        "export", "Write weights for timm or Hugging Face transformers, load them there and compare the outputs."
    )
    parser.add_argument("run", metavar="RUN", help="run folder, .safetensors file or another library's checkpoint")
    parser.add_argument("--to", choices=("timm", "hf"), required=True, help="format: timm writes a file, hf a folder")
    parser.add_argument("--out", metavar="PATH", type=Path, required=True, help="new .safetensors file, or new folder")
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
    architecture.add_argument("--heads", type=at_least_one, metavar="N", help="attention heads of the encoder")
    architecture.add_argument(
        "--decoder_heads", type=at_least_one, metavar="N", help="with --form vit_mae: attention heads of the decoder"
    )
    architecture.add_argument(
        "--normalize_pixels",
        action="store_true",
        help="with --form vit_mae: the model was trained on pixels normalized per patch",
    )
    return parser
