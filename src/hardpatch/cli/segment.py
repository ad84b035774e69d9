"""hardpatch segment."""

import argparse
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from hardpatch.cli.arguments import Parser, workers
from hardpatch.errors import UserError

if TYPE_CHECKING:
    from hardpatch.train.segmentation_settings import SegmentationRun

README = """# A segmenter

Made by `{command}`.

| file | what |
|---|---|
| `config.yaml` | every setting, the classes and the encoder it began with |
| `result.json` | mIoU, mean and pixel accuracy on the validation images, and IoU, accuracy and pixels of each class |
| `segmenter.safetensors` | encoder and heads; `hardpatch.interchange.segmenter.load_segmenter` reads it |
| `metrics.jsonl`, `tensorboard/` | losses, learning rate and measures as training went on |
| `pictures/` | curves; images beside their true and their predicted classes |
| `checkpoints/` | to go on from: the same command with `--resume` |
"""


def segment(arguments: list[str]) -> int:
    from hardpatch.train.segmentation_settings import PRESETS

    parser = Parser("segment", "Train UperNet on a pre-trained encoder: a class for every pixel.")
    parser.add_argument("run", metavar="RUN", help="run folder, weights file or checkpoint of a ViT")
    parser.add_argument("--train", required=True, metavar="DIR", help="images/ and labels/, or their train parts")
    parser.add_argument("--val", required=True, metavar="DIR", help="the same, or their val parts")
    parser.add_argument("--out", required=True, metavar="DIR", type=Path, help="folder of the run")
    parser.add_argument(
        "--preset", choices=tuple(PRESETS), default="small", help="settings to start from (%(default)s)"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--weights", choices=("student", "teacher", "untrained"), default="student")
    labels = parser.add_argument_group("labels")
    labels.add_argument(
        "--classes", metavar="N|FILE", help="how many, or their names (default: classes.txt of --train)"
    )
    labels.add_argument(
        "--ignore", type=int, nargs="+", default=[255], metavar="VALUE", help="label values to leave out (default: 255)"
    )
    labels.add_argument(
        "--reduce_zero_label", action="store_true", help="0 is ignored, 1 is the first class (on for ADE20K's folders)"
    )
    machine = parser.add_argument_group("machine")
    machine.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    machine.add_argument(
        "--workers", type=workers, default="auto", metavar="N", help="processes that decode (default: auto)"
    )
    machine.add_argument("--checkpoint_minutes", type=float, default=10.0, metavar="X", help="default: %(default)s")
    _settings(parser)
    options = parser.parse_args(arguments)
    return _segment(options, arguments)


def _settings(parser: Parser) -> None:
    """An option for every setting of a run; where it is not given, the preset's value stands."""
    from hardpatch.train.segmentation_settings import PRESETS, SegmentationRun

    group = parser.add_argument_group("settings", f"in brackets their values in the presets {' | '.join(PRESETS)}")
    hints = get_type_hints(SegmentationRun)
    for setting in fields(SegmentationRun):
        values = [getattr(preset, setting.name) for preset in PRESETS.values()]
        told = " | ".join(" ".join(map(str, value)) if isinstance(value, tuple) else str(value) for value in values)
        hint = hints[setting.name]
        sequence = next((part for part in (hint, *get_args(hint)) if get_origin(part) is tuple), None)
        more: dict[str, Any] = {"default": argparse.SUPPRESS, "help": f"{setting.metadata['help']} [{told}]"}
        if hint is bool:
            more["action"] = argparse.BooleanOptionalAction
        elif sequence is not None:
            more |= {"type": get_args(sequence)[0], "nargs": "+", "metavar": "X"}
        elif hint in (int, float):
            more |= {"type": hint, "metavar": "X"}
        else:
            more["choices"] = get_args(hint)
        group.add_argument(f"--{setting.name}", **more)


def _run_of(options: argparse.Namespace) -> "SegmentationRun":
    """The preset, changed by the options that were given. One number for a crop or a stride makes it square."""
    from hardpatch.train.segmentation_settings import PRESETS

    given = {
        setting.name: getattr(options, setting.name) for setting in fields(PRESETS["paper"]) if setting.name in options
    }
    for name, value in given.items():
        if isinstance(value, list):
            given[name] = tuple(value * 2 if name in ("crop", "stride") and len(value) == 1 else value)
    return replace(PRESETS[options.preset], **given)


def _segment(options: argparse.Namespace, arguments: list[str]) -> int:
    import torch
    import yaml

    from hardpatch.data.loader import resolve_workers
    from hardpatch.data.segmentation import check, find_labels, open_segmentation
    from hardpatch.interchange.backbone import load_backbone
    from hardpatch.interchange.segmenter import FILE, save_segmenter
    from hardpatch.models.upernet import UperNet
    from hardpatch.report.segmentation import table, write_report
    from hardpatch.report.terminal import TrainingProgress, show_log, use_device
    from hardpatch.train import folder as run_folder
    from hardpatch.train.loop import interruptions
    from hardpatch.train.segmentation import SegmentationTrainer, inference_of
    from hardpatch.train.segmentation_settings import check_run, to_dict

    run, out = _run_of(options), options.out
    device, processes = use_device(options.device), resolve_workers(options.workers)
    backbone = load_backbone(options.run, options.weights, drop_path=run.drop_path)
    check_run(run, backbone.encoder.patch_size)
    meaning = find_labels(options.train, options.classes, options.ignore, options.reduce_zero_label)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        try:
            model = UperNet(
                backbone.encoder,
                len(meaning.names),
                mean=backbone.mean,
                std=backbone.std,
                channels=run.channels,
                blocks=run.blocks,
                dropout=run.dropout,
            )
        except ValueError as error:
            raise UserError(f"--{error}") from None
    train = open_segmentation(options.train, "train", meaning)
    val = open_segmentation(options.val, "val", meaning)
    settings = {
        "run": str(options.run),
        "weights": options.weights,
        "train": str(options.train),
        "val": str(options.val),
        "images": {"train": len(train), "val": len(val)},
        "classes": dict(zip(meaning.values, meaning.names, strict=True)),
        "ignored": list(meaning.ignored),
        **to_dict(run),
    }
    if options.resume:
        _check_resume(out, settings)
    else:
        run_folder.check_new(out)
    progress = TrainingProgress()
    show_log(progress.console)
    pixels = check(train, "train")
    check(val, "val")
    if not options.resume:
        text = yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=1000)
        run_folder.write_files(out, text, ["segment", *arguments], README)
    trainer = SegmentationTrainer(
        model.to(device),
        run,
        train,
        val,
        out,
        device=device,
        workers=processes,
        checkpoint_minutes=options.checkpoint_minutes,
    )
    trainer.restore()
    with interruptions() as signals:
        judged = trainer.fit(progress, lambda: bool(signals))
    if judged is None:
        print(
            f"stopped after step {trainer.step} of {run.steps}, nothing is lost; the same command with --resume goes on"
        )
        return 128 + signals[0]
    inference = inference_of(run)
    save_segmenter(out / FILE, model, meaning.names, inference)
    shares = {name: int(count) for name, count in zip(meaning.names, pixels, strict=True)}
    more = {"steps": trainer.step, "inference": run.inference, "images": len(val), "train_pixels": shares}
    pictures = write_report(out, judged, val, backbone.encoder.channels, more)
    measures = judged.measures
    print(f"{out}: {run.steps} steps done, {len(val)} images judged ({run.inference} inference)")
    print(table(measures, meaning.names))
    print(
        f"mIoU {measures.miou:.2%}, mean accuracy {measures.mean_accuracy:.2%}, "
        f"pixel accuracy {measures.pixel_accuracy:.2%}"
    )
    print(f"weights: {out / FILE}; pictures: {', '.join(str(path) for path in pictures)}")
    return 0


def _check_resume(folder: Path, settings: dict[str, Any]) -> None:
    """Refuse to go on with other settings than the run began with."""
    import yaml

    from hardpatch.train.segmentation_settings import FREE_TO_CHANGE

    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"--out: expected a run folder with config.yaml to go on with, found none in {folder}")
    then = yaml.safe_load(path.read_text(encoding="utf-8"))
    changed = [name for name in settings if name not in FREE_TO_CHANGE and then.get(name) != settings[name]]
    if changed:
        told = "; ".join(f"{name} was {then.get(name)!r}, now {settings[name]!r}" for name in changed)
        raise UserError(f"--resume: {folder} was made with other settings: {told}; take those, or another --out")
