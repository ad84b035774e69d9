"""hardpatch detect."""

from hardpatch.cli.settings import given_settings, print_result, stopped, training_parser
from hardpatch.detect.settings import ANNOTATIONS, PRESETS


def detect(arguments: list[str]) -> int:
    """Run ``hardpatch detect``; returns the exit code."""
    parser = training_parser(
        "detect",
        "Train Mask R-CNN on the encoder of RUN (ViTDet): boxes and, if annotated, masks of objects.",
        PRESETS,
        "--train DIR --annotations PATH\n       --val DIR --val_annotations PATH",
    )
    parser.add_argument("--annotations", metavar="PATH", help=f"annotations of --train: {ANNOTATIONS}")
    parser.add_argument("--val_annotations", metavar="PATH", help="annotations of --val, likewise")
    options = parser.parse_args(arguments)

    from hardpatch.detect.run import detect as train
    from hardpatch.train.display import open_display
    from hardpatch.train.result import Verdict

    progress = open_display(options.display)
    result = train(
        options.run,
        options.train,
        options.annotations,
        options.val,
        options.val_annotations,
        options.out,
        preset=options.preset,
        resume=options.resume,
        progress=progress,
        arguments=["detect", *arguments],
        **given_settings(options, PRESETS),
    )
    if not result.finished:
        return stopped(options, "detect", result.step, result.total, result.folder, result.signal)
    images = result.result["images"]["val"]
    lines = [f"{result.folder}: {result.total} steps done, {len(result.detections)} detections in {images} images"]
    for kind, values in (result.precision or {}).items():
        metrics = ", ".join(f"{name} {'-' if value is None else f'{value:.2%}'}" for name, value in values.items())
        lines.append(f"{kind}: {metrics}")
    lines += [Verdict(**result.result["verdict"]).line(), f"pictures: {', '.join(map(str, result.pictures))}"]
    return print_result(options, result.result, lines)
