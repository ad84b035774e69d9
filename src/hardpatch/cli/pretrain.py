"""hardpatch pretrain."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hardpatch.cli.arguments import Parser
from hardpatch.errors import UserError
from hardpatch.pretrain import config, recipes


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
    if own.recipe and own.config:
        raise UserError("--recipe, --config: expected one of the two, got both; a file may name a recipe as its base")
    if own.data is not None:
        settings += ["--data.path", own.data]
    no_data = not any(setting.split("=")[0] == "--data.path" for setting in settings)
    name = own.recipe or (Path(own.config).stem if own.config else "demo" if no_data else "run")
    folder: Path = own.out or Path("runs") / name
    if own.recipe or own.config:
        values = recipes.read(own.recipe) if own.recipe else recipes.read_file(own.config)
    elif own.resume:
        from hardpatch.pretrain.folder import read_config

        values = config.to_dict(read_config(folder))
    else:
        values = recipes.read("demo") if no_data else {}
    run = config.build(values, settings)
    if own.recipe and run.data.path is None:
        raise UserError(f"--data: recipe {own.recipe} needs your images: --data PATH (demo:train is the embedded set)")
    if own.print_config:
        print(config.to_yaml(run), end="")
        return 0
    return _train(run, folder, own.resume, arguments)


def _train(run: Any, folder: Path, resume: bool, arguments: Sequence[str]) -> int:
    from hardpatch.pretrain import folder as run_folder
    from hardpatch.pretrain.run import pretrain
    from hardpatch.report.run import write_pictures
    from hardpatch.train.progress import TrainingProgress, show_log
    from hardpatch.train.run_folder import check_new

    progress = TrainingProgress()
    show_log(progress.console)
    if resume:
        run_folder.check_resume(folder, run)
    else:
        check_new(folder)

    def prepare() -> None:
        run_folder.write(folder, run, ["pretrain", *arguments])
        show_log(progress.console, folder / "log.txt")

    outcome = pretrain(run, folder, progress, prepare)
    if not outcome.finished:
        print(f"stopped after step {outcome.step} of {outcome.total}, nothing is lost; go on with: ", end="")
        print(f"hardpatch pretrain --resume --out {folder}")
        return 128 + outcome.signal
    pictures = write_pictures(folder)
    print(f"{folder}: {outcome.total} steps done, weights in {outcome.checkpoint}")
    print(f"pictures: {', '.join(str(path) for path in pictures)}")
    return 0
