"""The verb study."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from hardpatch.cli.arguments import Parser, at_least_one, write_json
from hardpatch.cli.study_gallery import FIGURES, study_gallery
from hardpatch.errors import UserError

if TYPE_CHECKING:
    from hardpatch.study.plan import Study


def study(arguments: list[str]) -> int:
    """Run ``hardpatch study`` or ``hardpatch study plan`` and return the exit code."""
    if arguments and arguments[0] in FIGURES:
        return study_gallery(arguments)
    planning = arguments[:1] == ["plan"]
    options, settings = _parser().parse_known_args(arguments[1:] if planning else arguments)
    if options.images_per_second is not None and (not planning or options.images_per_second <= 0):
        raise UserError(
            "--images_per_second: expected a number above 0 with hardpatch study plan, "
            f"got {options.images_per_second}{'' if planning else ' without plan'}"
        )
    if options.out is None and not planning:
        raise UserError("--out: expected a folder for the study, got none")
    if options.json is not None and planning:
        raise UserError("--json: hardpatch study plan only prints; leave it out")
    described = _study(options, settings, arguments)
    if planning:
        return _plan(described, options.images_per_second)

    from hardpatch.study.run import run_study

    code = run_study(described)
    table = described.out / "table.json"
    if options.json is not None and table.is_file():
        write_json(options.json, json.loads(table.read_text(encoding="utf-8")))
    return code


def _parser() -> Parser:
    from hardpatch.study import rows
    from hardpatch.study.scales import SCALES

    parser = Parser(
        "study", "Train and measure every row of a table of the paper, and print the paper's numbers beside ours."
    )
    parser.usage = (
        "hardpatch study [plan] TABLE --out DIR [--scale NAME]\n"
        "                       [--data PATH --val PATH] [--seeds K] [--jobs J]\n"
        "                       [--SETTING VALUE]"
    )
    parser.epilog = (
        "plan estimates the cost and starts nothing. All settings of hardpatch pretrain (see its --help all) are "
        "accepted, such as --epochs 50, and apply to all rows; a row's own settings override them. Tables: "
        + "; ".join(f"{name} ({rows.read(name).title})" for name in rows.names())
        + f". {', '.join(FIGURES)}: the paper's figures from a run, see hardpatch study {FIGURES[0]} --help"
    )
    parser.add_argument("table", metavar="TABLE", help="name of a table, listed below")
    parser.add_argument(
        "--scale", choices=tuple(SCALES), default="tiny", help="size of the runs (default: %(default)s)"
    )
    parser.add_argument("--data", metavar="PATH", help="images to train on")
    parser.add_argument("--val", metavar="PATH", help="labeled images to evaluate on")
    parser.add_argument(
        "--train_labeled",
        metavar="PATH",
        help="labeled images for k-NN, linear probe and fine-tuning (default: --data)",
    )
    parser.add_argument(
        "--seeds",
        type=at_least_one,
        default=1,
        metavar="K",
        help="runs of each row, with seeds 0 to K - 1 (default: 1)",
    )
    parser.add_argument("--jobs", type=at_least_one, default=1, metavar="J", help="runs at a time (default: 1)")
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder of the study")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the table to this file, too")
    for name in ("dino", "clip"):
        parser.add_argument(
            f"--{name}_weights",
            metavar="FILE",
            help=f"weights of {name.upper()} in timm's layout; rows with its features need them",
        )
    parser.add_argument(
        "--tokenizer", metavar="FILE", help="visual tokens for BEiT's rows (default: trained on --data)"
    )
    parser.add_argument(
        "--images_per_second",
        type=float,
        metavar="X",
        help="with plan: training speed (default: measured)",
    )
    return parser


def _study(options: argparse.Namespace, settings: list[str], arguments: list[str]) -> "Study":
    from hardpatch.study import rows
    from hardpatch.study.plan import Study
    from hardpatch.study.scales import SCALES

    scale = SCALES[options.scale]
    data, val = options.data or scale.data, options.val or scale.val
    if data is None or val is None:
        missing = " and ".join(f"--{name}" for name, path in (("data", data), ("val", val)) if path is None)
        raise UserError(
            f"{missing}: scale {options.scale} has no images of its own; --val and --train_labeled must have labels"
        )
    weights = {name: path for name in ("dino", "clip") if (path := getattr(options, f"{name}_weights")) is not None}
    return Study(
        table=rows.read(options.table),
        scale=options.scale,
        out=options.out or Path("study"),
        data=data,
        train=options.train_labeled or data,
        val=val,
        seeds=options.seeds,
        jobs=options.jobs,
        settings=tuple(settings),
        weights=weights,
        tokenizer=options.tokenizer,
        arguments=tuple(arguments),
    )


def _plan(study: "Study", images_per_second: float | None) -> int:
    from hardpatch.study.cost import estimate_costs, finetuned_images

    costs, reasons = estimate_costs(study, images_per_second)
    width = max(len(cost.name) for cost in costs)
    print(f"{'':<{width}}  runs       images  images/s    hours")
    for cost in costs:
        speed = f"{cost.speed:8.0f} {cost.hours:8.2f}" if cost.speed is not None else f"       ?        ?  {cost.note}"
        print(f"{cost.name:<{width}}  {cost.runs:4d} {cost.images:12,d}  {speed}")
    for row in study.table.rows:
        if row.key in reasons:
            print(f"{row.name:<{width}}  not run: {reasons[row.key]}")
    hours = sum(cost.hours for cost in costs if cost.hours is not None)
    runs, images = sum(cost.runs for cost in costs), sum(cost.images for cost in costs)
    source = "speed of --images_per_second" if images_per_second is not None else "speed of a few steps on this machine"
    print(
        f"{runs} runs, {images:,d} images, {hours:.2f} hours of training, one run after another, at the {source}; "
        f"fine-tuning ({finetuned_images(study):,d} images), k-NN and linear probe come on top"
    )
    return 0
