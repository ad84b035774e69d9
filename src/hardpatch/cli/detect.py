"""hardpatch detect."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hardpatch.cli.arguments import Parser
from hardpatch.cli.settings import check_folder, given_settings, stopped, training_arguments
from hardpatch.detect.settings import FREE_TO_CHANGE, PRESETS, DetectionRun, check_run, with_values
from hardpatch.errors import UserError
from hardpatch.train.settings import to_dict, to_yaml

if TYPE_CHECKING:
    from hardpatch.detect.data import CocoSet

README = """# A detector

Made by `{command}`.

| file | what |
|---|---|
| `config.yaml` | every setting, the data and the encoder it began with |
| `result.json` | average precision of boxes and masks on the validation images |
| `detections.json` | what was found there, as COCO results |
| `metrics.jsonl`, `tensorboard/` | losses, learning rate and average precision as training went on |
| `pictures/` | curves; annotated and found objects side by side |
| `checkpoints/` | weights, and what the same command with `--resume` goes on from |

In Python, `hardpatch.detect.trainer.load_detector("{folder}")` gives the detector.
"""


def detect(arguments: list[str]) -> int:
    parser = Parser("detect", "Train Mask R-CNN on a pre-trained encoder (ViTDet): boxes and masks of objects.")
    parser.add_argument("run", metavar="RUN", help="run folder, weights file or checkpoint of a ViT")
    parser.add_argument("--train", required=True, metavar="DIR", help="folder of images to learn from")
    parser.add_argument("--annotations", required=True, metavar="JSON", help="of these, in COCO's layout")
    parser.add_argument("--val", required=True, metavar="DIR", help="folder of images to be judged on")
    parser.add_argument("--val_annotations", required=True, metavar="JSON", help="of these")
    training_arguments(parser, PRESETS)
    options = parser.parse_args(arguments)
    given = given_settings(options, PRESETS[options.preset])
    if "steps" in given and "epochs" in given:
        raise UserError("--steps: not allowed with --epochs; give one of them")
    run = with_values(PRESETS[options.preset], given)
    check_run(run)
    return _detect(options, run, arguments)


def _detect(options: argparse.Namespace, run: DetectionRun, arguments: list[str]) -> int:
    from hardpatch.curves import training_curves
    from hardpatch.data.workers import resolve_workers
    from hardpatch.detect.data import mask_tools
    from hardpatch.detect.pictures import detection_sheet
    from hardpatch.detect.trainer import DetectionTrainer, write_result
    from hardpatch.interchange.backbone import load_backbone
    from hardpatch.train import run_folder
    from hardpatch.train.device import use_device
    from hardpatch.train.metrics import read_metrics
    from hardpatch.train.progress import TrainingProgress, show_log
    from hardpatch.train.signals import interruptions

    mask_tools()  # complains before anything is read
    out, train, val = options.out, Path(options.train), Path(options.val)
    annotations = _read("annotations", options.annotations, "train", train)
    val_annotations = _read("val_annotations", options.val_annotations, "val", val)
    if annotations.categories != val_annotations.categories:
        raise UserError(
            f"--val_annotations: expected the {len(annotations.categories)} categories of {annotations.path}, "
            f"{val_annotations.path} has others"
        )
    device, processes = use_device(options.device), resolve_workers(options.workers)
    backbone = load_backbone(options.run, options.weights, drop_path=run.drop_path)
    settings = {
        **{name: str(getattr(options, name)) for name in ("run", "weights")},
        **{name: str(getattr(options, name)) for name in ("train", "annotations", "val", "val_annotations")},
        **to_dict(run),
    }
    check_folder(out, settings, FREE_TO_CHANGE, resume=options.resume)
    trainer = DetectionTrainer(
        backbone,
        run,
        (annotations, train),
        (val_annotations, val),
        out,
        device=device,
        workers=processes,
        checkpoint_minutes=options.checkpoint_minutes,
    )
    progress = TrainingProgress()
    show_log(progress.console)
    if not options.resume:
        run_folder.write_files(out, to_yaml(settings), ["detect", *arguments], README)
    trainer.restore()
    with interruptions() as signals:
        outcome = trainer.fit(progress, signals)
    if outcome is None:
        return stopped(trainer.step, trainer.total, signals[0])
    result = {
        **outcome.precision,
        "images": len(val_annotations.images),
        "detections": len(outcome.detections),
        "steps": trainer.total,
        "annotations_without_extent": {"train": annotations.dropped, "val": val_annotations.dropped},
    }
    write_result(out, result, outcome.detections)
    curves = training_curves(read_metrics(out / "metrics.jsonl"), out / "pictures" / "curves.png")
    sheet = out / "pictures" / "detections.png"
    detection_sheet(val_annotations, val, outcome.detections, channels=backbone.encoder.channels).save(sheet)
    print(f"{out}: {trainer.total} steps done, {len(outcome.detections)} detections in {result['images']} images")
    for kind, figures in outcome.precision.items():
        told = ", ".join(f"{name} {'-' if value is None else f'{value:.2%}'}" for name, value in figures.items())
        print(f"{kind}: {told}")
    print(f"pictures: {curves}, {sheet}")
    return 0


def _read(argument: str, path: str, folder_argument: str, folder: Path) -> "CocoSet":
    """The annotations of a folder that holds all of their images."""
    from hardpatch.detect.data import check_images, read_coco

    try:
        coco = read_coco(path)
    except UserError as error:
        raise UserError(f"--{argument}: {error}") from None
    try:
        check_images(coco, folder)
    except UserError as error:
        raise UserError(f"--{folder_argument}: {error}") from None
    return coco
