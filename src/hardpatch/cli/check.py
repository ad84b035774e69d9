"""The verb check."""

from hardpatch.cli.arguments import Parser, show_json, whole_set_arguments


def check(arguments: list[str]) -> int:
    """Run ``hardpatch check`` and return the exit code: 1 if a training would refuse the images."""
    parser = Parser(
        "check",
        "Look at every image before a training: what is there, what is left out, what is refused, and the settings "
        "that fit. Nothing is changed. The exit code is 1 if a training would refuse the images.",
    )
    whole_set_arguments(parser)
    parser.add_argument(
        "--labels", action="store_true", help="check the classes for a training on labels, too, as knn and finetune"
    )
    parser.add_argument("--annotations", metavar="PATH", help="check annotations of objects, too, as detect reads them")
    parser.add_argument("--masks", metavar="DIR", help="check a folder of label maps, too, as segment reads them")
    parser.add_argument(
        "--classes", metavar="N|FILE", help="classes of --masks (default: classes.txt in their folder or above it)"
    )
    options = parser.parse_args(arguments)

    from hardpatch.check.report import table
    from hardpatch.check.run import check as look
    from hardpatch.train.log import show_log
    from hardpatch.train.progress import counting

    show_log()
    with counting("images checked") as progress:
        chosen = {name: value for name, value in vars(options).items() if name not in ("path", "json")}
        result = look(options.path, **chosen, progress=progress)
    if not show_json(options.json, result.to_dict()):
        print(table(result), end="")
    return int(result.refused)
