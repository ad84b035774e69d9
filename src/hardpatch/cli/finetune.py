"""hardpatch finetune."""

from pathlib import Path

from hardpatch.cli.arguments import Parser, write_json
from hardpatch.errors import UserError
from hardpatch.finetune import settings
from hardpatch.train.settings import to_dict


def finetune(arguments: list[str]) -> int:
    parser = Parser(
        "finetune", "Train the encoder of RUN (run folder, weights file or reference checkpoint) under labels."
    )
    parser.add_argument("--train", metavar="PATH", help="labeled images to learn from")
    parser.add_argument("--val", metavar="PATH", help="labeled images to be judged on")
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder of the run")
    parser.add_argument("--preset", metavar="NAME", help=f"{', '.join(settings.PRESETS)} (default: paper)")
    parser.add_argument(
        "--from_scratch", "--from-scratch", action="store_true", help="random weights in a network of the same shape"
    )
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the result there too")
    parser.usage = (
        "hardpatch finetune RUN --train PATH --val PATH --out DIR [--preset NAME] [--from_scratch] [--resume] "
        "[--SETTING VALUE]"
    )
    if {"-h", "--help"} & set(arguments):
        print(parser.format_help() + settings.settings_help(), end="")
        return 0
    # argparse would take the value of a setting that it does not know for a RUN that is left out
    first = bool(arguments) and not arguments[0].startswith("-")
    own, changes = parser.parse_known_args(arguments[first:])
    if own.out is None:
        raise UserError("--out: expected a folder for the run, got nothing")
    values = {}
    if own.resume:
        from hardpatch.finetune.run import read_settings

        values = to_dict(read_settings(own.out))
    if first:
        values["run"] = arguments[0]
    values |= {name: getattr(own, name) for name in ("train", "val") if getattr(own, name) is not None}
    if own.from_scratch:
        values["from_scratch"] = True
    run = settings.build(values, changes, own.preset)

    from hardpatch.finetune.run import finetune as train
    from hardpatch.train.progress import TrainingProgress, show_log

    progress = TrainingProgress()
    show_log(progress.console)
    result = train(
        run,
        own.out,
        resume=own.resume,
        progress=progress,
        arguments=["finetune", *arguments],
        prepare=lambda: show_log(progress.console, own.out / "log.txt"),
    )
    if not result.finished:
        print(f"stopped after step {result.step} of {result.total}, nothing is lost; go on with: ", end="")
        print(f"hardpatch finetune --resume --out {own.out}")
        return 128 + result.signal
    if own.json is not None:
        import json

        write_json(own.json, json.loads((own.out / "accuracy.json").read_text(encoding="utf-8")))
    print(f"{own.out}: {result.total} steps done, weights in {result.checkpoint}")
    print(f"each class: {own.out / 'accuracy.json'}; pictures: {own.out / 'pictures'}")
    print(
        f"top-1 {result.top1:.2%}, top-5 {result.top5:.2%} after the last epoch "
        f"(best epoch {result.best_epoch:.4g}: top-1 {result.best_top1:.2%})"
    )
    return 0
