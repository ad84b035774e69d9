"""hardpatch pretrain."""

from pathlib import Path

from hardpatch.cli.arguments import Parser
from hardpatch.pretrain import config


def pretrain(arguments: list[str]) -> int:
    parser = Parser("pretrain", "Train on images without labels.")
    parser.add_argument("--recipe", metavar="NAME", help="a named run to start from; see: hardpatch recipes")
    parser.add_argument("--config", metavar="FILE", help="a YAML file of settings, in place of a recipe")
    parser.add_argument("--data", metavar="PATH", help="the images; nothing = the embedded demo set")
    parser.add_argument("--out", metavar="DIR", type=Path, help="folder of the run (default: runs/NAME)")
    parser.add_argument("--resume", action="store_true", help="go on with the run in --out")
    parser.add_argument("--print_config", action="store_true", help="print all settings as YAML and stop")
    parser.usage = (
        "hardpatch pretrain [--recipe NAME | --config FILE] [--data PATH] [--out DIR] [--resume] [--SETTING VALUE]"
    )
    if {"-h", "--help"} & set(arguments):
        print(parser.format_help() + config.settings_help(), end="")
        return 0
    own, settings = parser.parse_known_args(arguments)
    if own.print_config:
        from hardpatch.pretrain.folder import plan

        print(config.to_yaml(plan(own.recipe, own.config, own.data, own.out, settings, resume=own.resume)[0]), end="")
        return 0
    from hardpatch.pretrain.folder import plan
    from hardpatch.pretrain.run import train
    from hardpatch.train.log import show_log
    from hardpatch.train.progress import TrainingProgress

    run, folder = plan(own.recipe, own.config, own.data, own.out, settings, resume=own.resume)
    progress = TrainingProgress()
    show_log(progress.console)
    result = train(run, folder, resume=own.resume, progress=progress, arguments=["pretrain", *arguments])
    if not result.finished:
        print(f"stopped after step {result.step} of {result.total}, nothing is lost; go on with: ", end="")
        print(f"hardpatch pretrain --resume --out {folder}")
        return 128 + result.signal
    print(f"{folder}: {result.total} steps done, weights in {result.checkpoint}")
    print(f"pictures: {', '.join(map(str, result.pictures))}")
    return 0
