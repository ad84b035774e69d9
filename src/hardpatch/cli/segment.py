"""hardpatch segment."""

import argparse
from dataclasses import replace

from hardpatch.cli.arguments import Parser
from hardpatch.cli.settings import check_folder, given_settings, stopped, training_arguments
from hardpatch.errors import UserError
from hardpatch.segment.settings import FREE_TO_CHANGE, PRESETS, SegmentationRun, check_run
from hardpatch.train.settings import to_dict, to_yaml

README = """# A segmenter

Made by `{command}`.

| file | what |
|---|---|
| `config.yaml` | every setting, the classes and the encoder it began with |
| `result.json` | mIoU, mean and pixel accuracy on the validation images, and IoU, accuracy and pixels of each class |
| `segmenter.safetensors` | encoder and heads; `hardpatch.segment.file.load_segmenter` reads it |
| `metrics.jsonl`, `tensorboard/` | losses, learning rate and measures as training went on |
| `pictures/` | curves; images beside their true and their predicted classes |
| `checkpoints/` | to go on from: the same command with `--resume` |
"""


def segment(arguments: list[str]) -> int:
    parser = Parser("segment", "Train UperNet on a pre-trained encoder: a class for every pixel.")
    parser.add_argument("run", metavar="RUN", help="run folder, weights file or checkpoint of a ViT")
    parser.add_argument("--train", required=True, metavar="DIR", help="images/ and labels/, or their train parts")
    parser.add_argument("--val", required=True, metavar="DIR", help="the same, or their val parts")
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
    training_arguments(parser, PRESETS)
    options = parser.parse_args(arguments)
    return _segment(options, arguments)


def _run_of(options: argparse.Namespace) -> SegmentationRun:
    """The preset, changed by the options that were given. One number for a crop or a stride makes it square."""
    given = given_settings(options, PRESETS[options.preset])
    for name in ("crop", "stride"):
        if len(given.get(name, ())) == 1:
            given[name] *= 2
    return replace(PRESETS[options.preset], **given)


def _segment(options: argparse.Namespace, arguments: list[str]) -> int:
    import torch

    from hardpatch.data.workers import resolve_workers
    from hardpatch.interchange.backbone import load_backbone
    from hardpatch.segment.data import check, find_labels, open_segmentation
    from hardpatch.segment.file import FILE, save_segmenter
    from hardpatch.segment.model import UperNet
    from hardpatch.segment.pictures import table, write_report
    from hardpatch.segment.trainer import SegmentationTrainer, inference_of
    from hardpatch.train import run_folder
    from hardpatch.train.device import use_device
    from hardpatch.train.progress import TrainingProgress, show_log
    from hardpatch.train.signals import interruptions

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
    check_folder(out, settings, FREE_TO_CHANGE, resume=options.resume)
    progress = TrainingProgress()
    show_log(progress.console)
    pixels = check(train, "train")
    check(val, "val")
    if not options.resume:
        run_folder.write_files(out, to_yaml(settings), ["segment", *arguments], README)
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
        return stopped(trainer.step, run.steps, signals[0])
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
