"""hardpatch info and hardpatch recipes: look, and change nothing."""

from hardpatch.cli.arguments import Parser


def info(arguments: list[str]) -> int:
    parser = Parser("info", "What a run or a weights file is.")
    parser.add_argument("run", metavar="RUN", help="run folder, .safetensors file or reference checkpoint")
    options = parser.parse_args(arguments)

    from hardpatch.report.describe import describe

    print(describe(options.run), end="")
    return 0


def recipes(arguments: list[str]) -> int:
    parser = Parser("recipes", "The named runs; with a NAME, its text.")
    parser.add_argument("name", metavar="NAME", nargs="?")
    options = parser.parse_args(arguments)

    from hardpatch.pretrain import recipes

    if options.name:
        print(recipes.text(options.name), end="")
        return 0
    names = recipes.names()
    for name in names:
        first = recipes.text(name).splitlines()[0].removeprefix("# ")
        print(f"{name:<{max(map(len, names))}}  {first}")
    return 0
