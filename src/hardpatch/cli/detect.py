"""hardpatch detect."""

from hardpatch.cli.arguments import write_json
from hardpatch.cli.settings import given_settings, stopped, training_parser
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
    from hardpatch.train.log import show_log
    from hardpatch.train.progress import TrainingProgress
    from hardpatch.train.result import Verdict

    progress = TrainingProgress()
    show_log(progress.console)
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
        return stopped("detect", result.step, result.total, result.folder, result.signal)
    if options.json is not None:
        write_json(options.json, result.result)
    images = result.result["images"]["val"]
    print(f"{result.folder}: {result.total} steps done, {len(result.detections)} detections in {images} images")
    for kind, values in (result.precision or {}).items():
        metrics = ", ".join(f"{name} {'-' if value is None else f'{value:.2%}'}" for name, value in values.items())
        print(f"{kind}: {metrics}")
    print(Verdict(**result.result["verdict"]).line())
    print(f"pictures: {', '.join(map(str, result.pictures))}")
    return 0
