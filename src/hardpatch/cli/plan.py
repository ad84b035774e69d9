"""The verb plan."""

from pathlib import Path

from hardpatch.cli.arguments import Images, Parser, number, show_json
from hardpatch.configuration import config


def plan(arguments: list[str]) -> int:
    """Run ``hardpatch plan`` and return the exit code."""
    parser = Parser("plan", "Choose the settings of a training for a set of images, this machine and a time.")
    parser.usage = (
        "hardpatch plan PATH [--hours H] [--recipe NAME | --config FILE]\n                      [--SETTING VALUE]"
    )
    parser.add_argument("data", metavar="PATH", nargs="+", action=Images, help="images, as pretrain takes them")
    add_hours(parser)
    parser.add_argument("--recipe", metavar="NAME", help="named run whose settings are kept; only its time is measured")
    parser.add_argument("--config", metavar="FILE", help="YAML file of settings, likewise")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the plan to this file, too; - prints it alone")
    parser.add_argument("--print_config", action="store_true", help="print all settings as YAML in place of the plan")
    parser.epilog = (
        "All settings of hardpatch pretrain (see its --help all) are accepted, such as --batch_size 64; the rest of "
        "the plan follows them. hardpatch pretrain --data PATH --hours H makes the same plan and starts."
    )
    own, settings = parser.parse_with_settings(arguments)

    from hardpatch.pretrain.planning import make_plan
    from hardpatch.train.log import show_log
    from hardpatch.train.progress import doing

    show_log()
    with doing() as say:
        found = make_plan(own.data, own.hours, own.recipe, own.config, settings, say)
    if own.print_config:
        print(config.to_yaml(found.run), end="")
        return 0
    if not show_json(own.json, found.to_dict()):
        print(found)
    return 0


def add_hours(parser: Parser) -> None:
    """Add --hours."""
    parser.add_argument(
        "--hours",
        metavar="H",
        type=number("hours"),
        help="time that the training may take (default: 2 on a CPU, 8 on a GPU)",
    )
