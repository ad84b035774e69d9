"""The verb segment."""

import argparse

from hardpatch.cli.arguments import Parser, number
from hardpatch.cli.settings import given_settings, print_result, stopped, training_parser
from hardpatch.segment.settings import PRESETS


def segment(arguments: list[str]) -> int:
    """Run ``hardpatch segment`` and return the exit code."""
    parser = training_parser(
        "segment",
        "Train UperNet on the encoder of RUN to classify every pixel. Data: folders images/ and labels/ or masks/.",
        PRESETS,
    )
    _add_labels(parser)
    options = parser.parse_args(arguments)

    from hardpatch.segment.pictures import table
    from hardpatch.segment.run import segment as train
    from hardpatch.train.display import open_display
    from hardpatch.train.result import Verdict

    progress = open_display(options.display)
    result = train(
        options.run,
        options.train,
        options.val,
        options.out,
        classes=options.classes,
        ignore=options.ignore,
        reduce_zero_label=options.reduce_zero_label,
        threshold=options.threshold,
        label_suffix=options.label_suffix,
        preset=options.preset,
        resume=options.resume,
        progress=progress,
        arguments=["segment", *arguments],
        **given_settings(options, PRESETS),
    )
    if not result.finished:
        return stopped(options, "segment", result.step, result.total, result.folder, result.signal)
    assert result.evaluation is not None
    lines = [
        f"{result.folder}: {result.total} steps done, {result.result['images']['val']} images evaluated",
        table(result.evaluation.measures, result.classes),
        f"mIoU {result.miou:.2%}, mean accuracy {result.mean_accuracy:.2%}, "
        f"pixel accuracy {result.pixel_accuracy:.2%} ({result.result['inference']} inference)",
        Verdict(**result.result["verdict"]).line(),
        f"weights: {result.folder / 'segmenter.safetensors'}; pictures: {', '.join(map(str, result.pictures))}",
    ]
    return print_result(options, result.result, lines)


def _add_labels(parser: Parser) -> None:
    """Add the options that say what stands in label maps."""
    labels = parser.add_argument_group("labels")
    labels.add_argument(
        "--classes", metavar="N|FILE", help="number of classes, or their names (default: classes.txt of --train)"
    )
    labels.add_argument(
        "--ignore",
        type=number("ignore"),
        nargs="+",
        metavar="VALUE",
        help="label values whose pixels are ignored (default: 255, except in masks of 0 and 255)",
    )
    labels.add_argument(
        "--reduce_zero_label",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="ignore label value 0 and make 1 the first class (default: only for ADE20K's folders)",
    )
    labels.add_argument(
        "--threshold",
        type=number("threshold"),
        metavar="VALUE",
        help="masks of two classes: from this value on a pixel is of the second class (default: exact values)",
    )
    labels.add_argument(
        "--label_suffix",
        metavar="TEXT",
        help="what follows an image's stem in the stem of its label map (default: nothing, _mask, _labelIds, ...)",
    )
