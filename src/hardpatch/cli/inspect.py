"""The verbs info and recipes, which only print."""

from hardpatch.cli.arguments import Parser


def info(arguments: list[str]) -> int:
    """Run ``hardpatch info`` and return the exit code."""
    parser = Parser("info", "Describe a run or a weights file.")
    parser.add_argument("run", metavar="RUN", help="run folder, .safetensors file or reference checkpoint")
    options = parser.parse_args(arguments)

    from hardpatch.report.describe import describe

    print(describe(options.run), end="")
    return 0


def recipes(arguments: list[str]) -> int:
    """Run ``hardpatch recipes`` and return the exit code."""
    parser = Parser("recipes", "List the recipes, or print one of them.")
    parser.add_argument("name", metavar="NAME", nargs="?", help="recipe to print")
    options = parser.parse_args(arguments)

    from hardpatch.pretrain import recipes

    if options.name:
        print(recipes.text(options.name), end="")
        return 0
    names = recipes.names()
    for name in names:
        summary = recipes.text(name).splitlines()[0].removeprefix("# ")
        print(f"{name:<{max(map(len, names))}}  {summary}")
    return 0
