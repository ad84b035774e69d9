"""The verb tokenizer."""

import math

from hardpatch.cli.arguments import Images, column_arguments
from hardpatch.cli.settings import add_settings, given_settings, print_result, run_parser, stopped
from hardpatch.pretrain.tokenizer_settings import PRESETS


def tokenizer(arguments: list[str]) -> int:
    """Run ``hardpatch tokenizer`` and return the exit code."""
    parser = run_parser(
        "tokenizer", "Train a tokenizer for host beit (setting method.tokenizer) on images without labels."
    )
    parser.usage = (
        "hardpatch tokenizer --data PATH --out DIR [--OPTION VALUE]\n       hardpatch tokenizer --resume --out DIR"
    )
    parser.add_argument(
        "--data",
        metavar="PATH",
        nargs="+",
        action=Images,
        help="images, as for pretrain; demo:train is the embedded set",
    )
    column_arguments(parser, ("image",))
    add_settings(parser, PRESETS)
    options = parser.parse_args(arguments)

    from hardpatch.pretrain.tokenizer_run import train_tokenizer
    from hardpatch.train.display import open_display

    progress = open_display(options.display)
    settings = given_settings(options, PRESETS)
    result = train_tokenizer(
        options.data,
        options.out,
        image_column=options.image_column,
        resume=options.resume,
        progress=progress,
        arguments=["tokenizer", *arguments],
        **settings,
    )
    if result.quality is None or result.result is None:
        return stopped(options, "tokenizer", result.step, result.total, result.folder, result.signal)
    quality, vocabulary = result.quality, settings.get("vocabulary", PRESETS["small"].vocabulary)
    lines = [
        f"{result.folder}: {result.total} steps done",
        f"reconstruction error {quality.error:.5f} (squared, pixels in [0, 1]), {quality.psnr:.1f} dB "
        f"over {quality.images} images",
        f"tokens used: {quality.used} of {vocabulary}; entropy {quality.entropy:.2f} bits "
        f"of at most {math.log2(vocabulary):.2f}, perplexity {quality.perplexity:.1f}",
        f"pictures: {', '.join(map(str, result.pictures))}",
        f"use it with host beit (hardpatch recipes names some): --method.tokenizer {result.folder}",
    ]
    return print_result(options, result.result, lines)
