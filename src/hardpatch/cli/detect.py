"""hardpatch detect."""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from hardpatch.cli.arguments import Parser, workers
from hardpatch.errors import UserError
from hardpatch.evaluate.detection_settings import FREE_TO_CHANGE, PRESETS, DetectionRun, check_run, to_dict, with_values

if TYPE_CHECKING:
    from hardpatch.data.coco import CocoSet

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

In Python, `hardpatch.evaluate.detection.load_detector("{folder}")` gives the detector.
"""


def detect(arguments: list[str]) -> int:
    parser = Parser("detect", "Train Mask R-CNN on a pre-trained encoder (ViTDet): boxes and masks of objects.")
    parser.add_argument("run", metavar="RUN", help="run folder, weights file or checkpoint of a ViT")
    parser.add_argument("--train", required=True, metavar="DIR", help="folder of images to learn from")
    parser.add_argument("--annotations", required=True, metavar="JSON", help="of these, in COCO's layout")
    parser.add_argument("--val", required=True, metavar="DIR", help="folder of images to be judged on")
    parser.add_argument("--val_annotations", required=True, metavar="JSON", help="of these")
    parser.add_argument("--out", required=True, metavar="DIR", type=Path, help="folder of the run")
    parser.add_argument(
        "--preset", choices=tuple(PRESETS), default="small", help="settings to start from (%(default)s)"
    )
    parser.add_argument("--weights", choices=("student", "teacher", "untrained"), default="student")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    machine.add_argument(
        "--workers", type=workers, default="auto", metavar="N", help="processes that decode (default: auto)"
    )
    machine.add_argument("--checkpoint_minutes", type=float, default=10.0, metavar="X", help="default: %(default)s")
    _settings(parser)
    options = parser.parse_args(arguments)
    names = (setting.name for setting in fields(DetectionRun))
    given = {name: getattr(options, name) for name in names if name in options}
    if "steps" in given and "epochs" in given:
        raise UserError("--steps: not allowed with --epochs; give one of them")
    run = with_values(PRESETS[options.preset], given)
    check_run(run)
    return _detect(options, run, arguments)


def _settings(parser: Parser) -> None:
    """An option for every setting of a run; where it is not given, the preset's value stands."""
    group = parser.add_argument_group("settings", f"in brackets their values in the presets {' | '.join(PRESETS)}")
    hints = get_type_hints(DetectionRun)
    for setting in fields(DetectionRun):
        values = [getattr(preset, setting.name) for preset in PRESETS.values()]
        told = " | ".join(" ".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in values)
        hint = next((part for part in get_args(hints[setting.name]) if part in (int, float)), hints[setting.name])
        more: dict[str, Any] = {"default": argparse.SUPPRESS, "help": f"{setting.metadata['help']} [{told}]"}
        if get_origin(hints[setting.name]) is tuple:
            more |= {"type": float, "nargs": 2, "metavar": ("LOW", "HIGH")}
        elif hint in (int, float):
            more |= {"type": hint, "metavar": "X"}
        else:
            more["choices"] = get_args(hint)
        group.add_argument(f"--{setting.name}", **more)


def _detect(options: argparse.Namespace, run: DetectionRun, arguments: list[str]) -> int:
    import yaml

    from hardpatch.data.coco import mask_tools
    from hardpatch.data.loader import resolve_workers
    from hardpatch.evaluate.detection import DetectionTrainer, write_result
    from hardpatch.evaluate.detection_pictures import detection_sheet
    from hardpatch.figures import training_curves
    from hardpatch.interchange.backbone import load_backbone
    from hardpatch.report.terminal import TrainingProgress, show_log, use_device
    from hardpatch.train import folder as run_folder
    from hardpatch.train.loop import interruptions
    from hardpatch.train.monitor import read_metrics

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
    if options.resume:
        _check_resume(out, settings)
    else:
        run_folder.check_new(out)
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
        text = yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=1000)
        run_folder.write_files(out, text, ["detect", *arguments], README)
    trainer.restore()
    with interruptions() as signals:
        outcome = trainer.fit(progress, signals)
    if outcome is None:
        print(f"stopped after step {trainer.step} of {trainer.total}, nothing is lost; ", end="")
        print("the same command with --resume goes on")
        return 128 + signals[0]
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
    from hardpatch.data.coco import check_images, read_coco

    try:
        coco = read_coco(path)
    except UserError as error:
        raise UserError(f"--{argument}: {error}") from None
    try:
        check_images(coco, folder)
    except UserError as error:
        raise UserError(f"--{folder_argument}: {error}") from None
    return coco


def _check_resume(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse to go on with other settings than the run began with."""
    import yaml

    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"--out: expected a run folder with config.yaml to go on with, found none in {folder}")
    then = yaml.safe_load(path.read_text(encoding="utf-8"))
    changed = [name for name in settings if name not in FREE_TO_CHANGE and then.get(name) != settings[name]]
    if changed:
        told = "; ".join(f"{name} was {then.get(name)!r}, now {settings[name]!r}" for name in changed)
        raise UserError(f"--resume: {folder} was made with other settings: {told}; take those, or another --out")
