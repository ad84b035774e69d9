"""The verbs info and recipes, which only print."""

from hardpatch.cli.arguments import Parser, architecture_of, json_argument, number, show_json, weights_arguments


def info(arguments: list[str]) -> int:
    """Run ``hardpatch info`` and return the exit code."""
    parser = Parser("info", "Describe a run or a weights file.")
    parser.add_argument("run", metavar="RUN", help="run folder, or weights of timm, Hugging Face, MAE, DINO")
    weights_arguments(parser, ("auto", "student", "teacher"))
    options = parser.parse_args(arguments)

    from hardpatch.report.describe import describe
    from hardpatch.train.log import show_log

    show_log()
    print(describe(options.run, options.weights, architecture_of(options)), end="")
    return 0


def recipes(arguments: list[str]) -> int:
    """Run ``hardpatch recipes`` and return the exit code."""
    parser = Parser("recipes", "List the recipes, or print one of them.")
    parser.add_argument("name", metavar="NAME", nargs="?", help="recipe to print")
    parser.add_argument(
        "--images",
        metavar="N",
        type=number("images"),
        help="images of your set (default: the set that a recipe is named after)",
    )
    json_argument(parser)
    options = parser.parse_args(arguments)

    from hardpatch.pretrain import recipes

    if options.name:
        print(recipes.text(options.name), end="")
        return 0
    from hardpatch.report.recipes import HEADER, recipe_rows
    from hardpatch.train.progress import doing

    with doing() as say:
        say("measuring this machine")
        rows = recipe_rows(options.images)
    if show_json(options.json, [row._asdict() for row in rows]):
        return 0
    print(HEADER, *rows, sep="\n")
    print("Time by arithmetic, without loading; hardpatch plan IMAGES --recipe NAME measures it on your images.")
    return 0
