"""The verb pretrain."""

import json
from contextlib import nullcontext
from pathlib import Path

from hardpatch.cli.arguments import Images, Parser
from hardpatch.cli.plan import add_hours
from hardpatch.cli.settings import output_arguments, print_result, stopped
from hardpatch.configuration import config


def pretrain(arguments: list[str]) -> int:
    """Run ``hardpatch pretrain`` and return the exit code."""
    parser = _parser()
    for flag in ("-h", "--help"):
        if flag in arguments:
            return _help(parser, everything=arguments[arguments.index(flag) + 1 :][:1] == ["all"])
    own, settings = parser.parse_with_settings(arguments)
    settings += [] if own.init is None else [f"--init.weights={own.init}"]
    from hardpatch.pretrain.plan import Plan
    from hardpatch.pretrain.planning import plan_or_configure
    from hardpatch.pretrain.run import train
    from hardpatch.train.display import open_display
    from hardpatch.train.live import LiveProgress
    from hardpatch.train.progress import doing

    progress = open_display(own.display)
    with doing() if isinstance(progress, LiveProgress) else nullcontext(lambda line: None) as say:
        run, folder = plan_or_configure(
            own.recipe, own.config, own.data, own.out, settings, resume=own.resume, hours=own.hours, say=say
        )
    if own.print_config:
        print(config.to_yaml(run.run if isinstance(run, Plan) else run), end="")
        return 0
    result = train(
        run,
        folder,
        resume=own.resume,
        progress=progress,
        arguments=["pretrain", *arguments],
        announce_time=True,
        names=config.names_in(settings),
    )
    if not result.finished:
        return stopped(own, "pretrain", result.step, result.total, folder, result.signal)
    lines = [
        f"{folder}: {result.total} steps done, weights in {result.checkpoint}",
        *([f"pictures: {', '.join(map(str, result.pictures))}"] if result.pictures else []),
        *([str(result.verdict)] if result.verdict is not None else []),
    ]
    return print_result(own, json.loads((folder / "result.json").read_text(encoding="utf-8")), lines)


def _parser() -> Parser:
    parser = Parser("pretrain", "Pre-train a Vision Transformer on images without labels.")
    parser.usage = (
        "hardpatch pretrain [--recipe NAME | --config FILE] [--data PATH]\n"
        "                          [--init WEIGHTS] [--hours H] [--out DIR] [--resume]\n"
        "                          [--SETTING VALUE]"
    )
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help="named run to start from; hardpatch recipes lists them (default: settings are chosen for the images, this "
        "machine and --hours; hardpatch plan shows them)",
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings to start from, instead of a recipe")
    parser.add_argument(
        "--data",
        metavar="PATH",
        nargs="+",
        action=Images,
        help="images: folders, Parquet, CSV, .zip or .tar files, patterns (default: demo:train, the embedded set)",
    )
    parser.add_argument(
        "--init",
        metavar="WEIGHTS",
        help="weights to start from: a run, or weights of MAE, timm, Hugging Face, DINO (default: random ones)",
    )
    add_hours(parser)
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder of the run (default: runs/NAME)")
    parser.add_argument("--resume", action="store_true", help="continue the run in --out, which needs nothing else")
    output_arguments(parser)
    parser.add_argument("--print_config", action="store_true", help="print all settings as YAML and exit")
    return parser


def _help(parser: Parser, *, everything: bool) -> int:
    """Print the help with the main settings or with all of them; returns the exit code."""
    config.add_help(parser, everything=everything)
    if not everything:
        parser.epilog = (
            "All settings, by section: hardpatch pretrain --help all. A setting needs no section if only one section "
            "has its name: --lr is --optim.lr."
        )
    parser.print_help()
    return 0
