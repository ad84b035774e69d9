"""The verb study."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from hardpatch.cli.arguments import Images, Parser, column_arguments, number, write_json
from hardpatch.cli.study_gallery import FIGURES, study_gallery
from hardpatch.errors import UserError, shown

if TYPE_CHECKING:
    from hardpatch.study.plan import Study
    from hardpatch.study.rows import Measure, Table


def study(arguments: list[str]) -> int:
    """Run ``hardpatch study`` or ``hardpatch study plan`` and return the exit code."""
    if arguments and arguments[0] in FIGURES:
        return study_gallery(arguments)
    planning = arguments[:1] == ["plan"]
    options, settings = _parser().parse_with_settings(arguments[1:] if planning else arguments)
    if options.images_per_second is not None and not planning:
        raise UserError("--images_per_second: expected with hardpatch study plan only; leave it out")
    if options.out is None and not planning:
        raise UserError("--out: expected a folder for the study, got none")
    if options.json is not None and planning:
        raise UserError("--json: hardpatch study plan only prints; leave it out")
    described = _study(options, settings, arguments)
    if planning:
        from hardpatch.study.cost import print_plan

        return print_plan(described, options.images_per_second)

    from hardpatch.study.run import run_study

    code = run_study(described)
    if options.json is not None:
        tables = [described.out / table.name / "table.json" for table in described.tables]
        contents = [json.loads(path.read_text(encoding="utf-8")) for path in tables if path.is_file()]
        write_json(options.json, contents[0] if len(described.tables) == 1 else {"tables": contents})
    return code


def _parser() -> Parser:
    from hardpatch.study import rows
    from hardpatch.study.scales import SCALES

    parser = Parser(
        "study", "Train and measure every row of a table of the paper, and print the paper's figures beside ours."
    )
    parser.usage = (
        "hardpatch study [plan] TABLE --out DIR [--scale NAME]\n"
        "                       [--data PATH --val PATH] [--seeds K] [--jobs J]\n"
        "                       [--SETTING VALUE]"
    )
    scales = "; ".join(f"{name} ({scale.about})" for name, scale in SCALES.items())
    parser.epilog = (
        "plan estimates the cost and trains nothing. All settings of hardpatch pretrain (see its --help all) are "
        "accepted, such as --epochs 50, and apply to all rows; a row's own settings override them. Rows with the same "
        f"settings share a run, in all tables of a folder. Scales: {scales}. Tables: all; "
        + "; ".join(f"{name} ({rows.read(name).title})" for name in rows.names())
        + f". {', '.join(FIGURES)}: the paper's figures from a run, see hardpatch study {FIGURES[0]} --help"
    )
    parser.add_argument("table", metavar="TABLE", help="name of a table, listed below, or all")
    parser.add_argument(
        "--scale", choices=tuple(SCALES), default="tiny", help="size of the runs (default: %(default)s)"
    )
    for name, about in (
        ("data", "images to train on"),
        ("val", "labeled images to evaluate on"),
        ("train_labeled", "labeled images for k-NN, linear probe and fine-tuning (default: --data)"),
    ):
        parser.add_argument(f"--{name}", metavar="PATH", action=Images, several=False, help=about)
    column_arguments(parser, section="data.")
    parser.add_argument(
        "--seeds",
        type=number("seeds"),
        default=1,
        metavar="K",
        help="runs of each row, with seeds 0 to K - 1 (default: 1)",
    )
    parser.add_argument("--jobs", type=number("jobs"), default=1, metavar="J", help="runs at a time (default: 1)")
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder of the study")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the table to this file, too")
    parser.add_argument(
        "--measures",
        metavar="NAME,...",
        help="measurements to make, of knn, linear, finetune, detect, segment, segment_160k (default: columns of the "
        "table, and k-NN and linear probe below scale paper; scale cpu leaves out fine-tuning)",
    )
    _add_inputs(parser)
    parser.add_argument(
        "--images_per_second",
        type=number("images_per_second"),
        metavar="X",
        help="with plan: training speed (default: measured)",
    )
    return parser


def _add_inputs(parser: Parser) -> None:
    """Add the arguments that name what some rows and columns need."""
    from hardpatch.study.plan import DETECT_ARGUMENTS, SEGMENT_ARGUMENTS

    for name in DETECT_ARGUMENTS:
        kind = "annotations, as of hardpatch detect" if name.endswith("annotations") else "folder of images"
        parser.add_argument(
            f"--{name}", metavar="PATH", action=Images, several=False, help=f"for AP of Table 5: {kind}"
        )
    for name in SEGMENT_ARGUMENTS:
        about = "for mIoU of Tables 5 and 7: images and label maps"
        parser.add_argument(f"--{name}", metavar="DIR", action=Images, several=False, help=about)
    parser.add_argument(
        "--segment_classes",
        metavar="N|FILE",
        help="their classes: a number, or a file of names (default: classes.txt of --segment_train)",
    )
    parser.add_argument(
        "--segment_reduce_zero_label", action="store_true", help="their label 0 is no class, as in ADE20K"
    )
    for name in ("dino", "clip"):
        parser.add_argument(
            f"--{name}_weights",
            metavar="FILE",
            help=f"weights of {name.upper()} in timm's layout; rows with its features need them",
        )
    parser.add_argument(
        "--tokenizer", metavar="FILE", help="visual tokens for BEiT's rows (default: trained on --data)"
    )


def _study(options: argparse.Namespace, settings: list[str], arguments: list[str]) -> "Study":
    from hardpatch.data.columns import Columns
    from hardpatch.study.plan import DETECT_ARGUMENTS, SEGMENT_ARGUMENTS, Study
    from hardpatch.study.scales import SCALES

    columns = Columns(options.image_column, options.label_column)
    scale = SCALES[options.scale]
    data, val = options.data or scale.data, options.val or scale.val
    if data is None or val is None:
        missing = " and ".join(f"--{name}" for name, path in (("data", data), ("val", val)) if path is None)
        raise UserError(
            f"{missing}: scale {options.scale} has no images of its own; --val and --train_labeled must have labels"
        )
    weights = {name: path for name in ("dino", "clip") if (path := getattr(options, f"{name}_weights")) is not None}
    return Study(
        tables=_tables(options.table),
        scale=options.scale,
        out=options.out or Path("study"),
        data=data,
        train=options.train_labeled or data,
        val=val,
        seeds=options.seeds,
        jobs=options.jobs,
        columns=columns,
        settings=(
            *settings,
            *(f"--data.{name}_column={column}" for name, column in columns._asdict().items() if column),
        ),
        measures=_measures(options.measures),
        detect=_all_or_none(options, DETECT_ARGUMENTS),
        segment=_all_or_none(options, SEGMENT_ARGUMENTS),
        segment_classes=options.segment_classes,
        reduce_zero_label=options.segment_reduce_zero_label,
        weights=weights,
        tokenizer=options.tokenizer,
        arguments=tuple(arguments),
    )


def _tables(name: str) -> "tuple[Table, ...]":
    from hardpatch.study import rows

    return tuple(rows.read(each) for each in (rows.names() if name == "all" else [name]))


def _measures(names: str | None) -> "tuple[Measure, ...] | None":
    if names is None:
        return None
    from hardpatch.study.rows import CHOOSABLE

    by_name = {str(measure): measure for measure in CHOOSABLE}
    chosen = [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in by_name:
            raise UserError(
                f"--measures: expected some of {', '.join(by_name)}, separated by commas, got {shown(repr(name))}"
            )
    return tuple(by_name[name] for name in chosen)


def _all_or_none(options: argparse.Namespace, names: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return the values of options that belong together; None if none is there."""
    values = {name: getattr(options, name) for name in names}
    missing = [name for name, value in values.items() if value is None]
    if len(missing) == len(names):
        return None
    if missing:
        together = ", ".join(f"--{name}" for name in names)
        raise UserError(f"--{missing[0]}: expected it with the other of {together}, got none")
    return tuple(values.values())
