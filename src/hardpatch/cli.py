"""The command line: each verb parses its arguments, calls one function and prints what came of it.

Exit codes: 0 done, 2 the user's mistake (one line on stderr), 1 a fault, 128 + n interrupted by signal n.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from hardpatch import __version__
from hardpatch.errors import TrainingError, UserError

if TYPE_CHECKING:
    import torch

    from hardpatch.evaluate.labelled import LabelledFeatures

USAGE = """\
usage: hardpatch VERB ...

Hard Patches Mining: self-supervised pre-training of Vision Transformers that also learn what to mask.

  pretrain   train on images without labels            hardpatch pretrain --recipe cifar10_tiny --data IMAGES
  knn        k-NN accuracy of a run's features         hardpatch knn RUN --train IMAGES --val IMAGES
  linear     linear probe on a run's features          hardpatch linear RUN --train IMAGES --val IMAGES
  score      where the model finds images hard         hardpatch score RUN IMAGES... --out DIR
  info       what a run or a weights file is           hardpatch info RUN
  recipes    the named runs                            hardpatch recipes [NAME]

`hardpatch VERB --help` tells more. RUN is a run folder, a .safetensors file or a reference checkpoint; IMAGES a folder
(flat, a tree or one folder a class), Parquet files, or demo:train and demo:test, the embedded set.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb. Returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    verbs: dict[str, Callable[[list[str]], int]] = {
        "pretrain": _pretrain,
        "knn": _knn,
        "linear": _linear,
        "score": _score,
        "info": _info,
        "recipes": _recipes,
    }
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if arguments[0] in ("-V", "--version"):
        print(f"hardpatch {__version__}")
        return 0
    verb, *rest = arguments
    try:
        if verb not in verbs:
            from hardpatch.config import did_you_mean

            raise UserError(f"no such verb{did_you_mean(verb, list(verbs)) or '; see hardpatch --help'}")
        return verbs[verb](rest)
    except UserError as error:
        print(f"hardpatch {verb}: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"hardpatch {verb}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except KeyboardInterrupt:
        return 130


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints are one line, like all others."""

    def __init__(self, verb: str, description: str) -> None:
        super().__init__(prog=f"hardpatch {verb}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        from hardpatch.config import did_you_mean

        options = [option for action in self._actions for option in action.option_strings]
        unknown = re.match(r"unrecognized arguments: (\S+)", message)
        raise UserError(message + (did_you_mean(unknown[1], options) if unknown else ""))


def _pretrain(arguments: list[str]) -> int:
    from hardpatch import config, recipes

    parser = _Parser("pretrain", "Train on images without labels.")
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
        from hardpatch.train.folder import read_config

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
    from hardpatch.report.run import write_pictures
    from hardpatch.report.terminal import TrainingProgress, show_log
    from hardpatch.train import folder as run_folder
    from hardpatch.train.loop import pretrain

    progress = TrainingProgress()
    show_log(progress.console)
    if resume:
        run_folder.check_resume(folder, run)
    else:
        run_folder.check_new(folder)

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


def _evaluation_parser(verb: str, description: str) -> _Parser:
    parser = _Parser(verb, description)
    parser.add_argument("run", metavar="RUN", help="run folder, .safetensors file or reference checkpoint")
    parser.add_argument("--train", required=True, metavar="PATH", help="labelled images to learn from")
    parser.add_argument("--val", required=True, metavar="PATH", help="labelled images to be judged on")
    parser.add_argument(
        "--pool", choices=("mean", "class"), default="mean", help="mean of the patch tokens, or class token"
    )
    parser.add_argument("--weights", choices=("student", "teacher", "untrained"), default="student")
    parser.add_argument("--untrained", action="store_true", help="measure the random initialisation beside it")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the numbers there too")
    _device_arguments(parser)
    return parser


def _device_arguments(parser: _Parser, batch_size: int = 256) -> None:
    parser.add_argument(
        "--batch_size", type=_at_least_one, default=batch_size, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--workers", type=_workers, default="auto", metavar="N", help="processes that decode (default: auto)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")


def _knn(arguments: list[str]) -> int:
    parser = _evaluation_parser("knn", "k-NN accuracy with DINO's weighted vote (cosine, temperature 0.07).")
    parser.add_argument("--k", type=_at_least_one, nargs="+", default=[10, 20, 100, 200], metavar="K")
    parser.add_argument("--temperature", type=float, default=0.07)
    options = parser.parse_args(arguments)
    if options.temperature <= 0:
        raise UserError(f"--temperature: expected a number above 0, got {options.temperature}")

    from hardpatch.evaluate.knn import knn_accuracy

    def measure(found: "LabelledFeatures", device: "torch.device") -> Any:
        return knn_accuracy(
            found.train,
            found.val,
            classes=len(found.classes),
            ks=options.k,
            temperature=options.temperature,
            device=device,
        )

    def row(result: Any) -> str:
        each = "  ".join(f"k={row.k} {row.top1:.2%}" for row in result.rows)
        return f"k-NN top-1 {result.top1:.2%} (best k {result.best_k}; {each})" + (
            f"; {result.note}" if result.note else ""
        )

    return _evaluate(options, measure, row)


def _linear(arguments: list[str]) -> int:
    from hardpatch.evaluate.linear import BASE_LRS, linear_probe

    parser = _evaluation_parser(
        "linear", "Linear probe on frozen features: all learning rates at once, the best reported."
    )
    parser.add_argument(
        "--optimizer", choices=("sgd", "lars"), default="sgd", help="sgd as MoCo v3, lars as MAE and HPM"
    )
    parser.add_argument("--epochs", type=_at_least_one, default=90, metavar="N")
    parser.add_argument(
        "--base_lrs", type=float, nargs="+", default=list(BASE_LRS), metavar="LR", help="for a batch of 256"
    )
    parser.add_argument("--probe_batch_size", type=_at_least_one, default=16384, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if min(options.base_lrs) <= 0:
        raise UserError(f"--base_lrs: expected numbers above 0, got {options.base_lrs}")

    def measure(found: "LabelledFeatures", device: "torch.device") -> Any:
        import torch

        return linear_probe(
            found.train,
            found.val,
            classes=len(found.classes),
            generator=torch.Generator().manual_seed(options.seed),
            base_lrs=options.base_lrs,
            optimiser=options.optimizer,
            epochs=options.epochs,
            batch_size=options.probe_batch_size,
            device=device,
        )

    def row(result: Any) -> str:
        each = "  ".join(f"{row.base_lr:g} {row.top1:.2%}" for row in result.rows)
        text = f"linear top-1 {result.top1:.2%}, top-5 {result.top5:.2%} (best base_lr {result.best_lr:g}; {each})"
        return text + (f"; {result.note}" if result.note else "")

    return _evaluate(options, measure, row)


def _evaluate(
    options: argparse.Namespace,
    measure: Callable[["LabelledFeatures", "torch.device"], Any],
    row: Callable[[Any], str],
) -> int:
    """Features of one or two models, a measurement on each, a line and a JSON entry for each."""
    from hardpatch.evaluate.labelled import labelled_features
    from hardpatch.interchange.load import load
    from hardpatch.report.terminal import counting, show_log, use_device

    show_log()
    device = use_device(options.device)
    results = {}
    for weights in [options.weights, "untrained"] if options.untrained else [options.weights]:
        model = load(options.run, weights, device=device)
        with counting(f"features, {weights}") as progress:
            found = labelled_features(
                model,
                options.train,
                options.val,
                device=device,
                pool=options.pool,
                batch_size=options.batch_size,
                workers=options.workers,
                progress=progress,
            )
        result = measure(found, device)
        results[weights] = {**result.to_dict(), "skipped": found.train.bad + found.val.bad}
        print(f"{weights}: {row(result)}")
    if options.json is not None:
        _write_json(
            options.json,
            {
                "run": options.run,
                "train": options.train,
                "val": options.val,
                "pool": options.pool,
                **results[options.weights],
                "untrained": results.get("untrained"),
            },
        )
    return 0


def _score(arguments: list[str]) -> int:
    parser = _Parser("score", "Predicted and true difficulty of images, as pictures and numbers (the paper's Fig. 2).")
    parser.add_argument("run", metavar="RUN", help="run folder, .safetensors file or reference checkpoint")
    parser.add_argument("images", metavar="IMAGES", nargs="+", help="files, folders, Parquet files, demo:test")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for pictures and scores.parquet")
    parser.add_argument(
        "--masks", metavar="DIR", type=Path, help="object masks of the same file stems, for the ROC area"
    )
    parser.add_argument("--mask_ratio", type=float, default=0.75, metavar="R", help="share of masked patches")
    parser.add_argument("--draws", type=_at_least_one, default=10, metavar="N", help="random masks for the true loss")
    parser.add_argument(
        "--pictures", type=int, default=32, metavar="N", help="images that get a picture; all get numbers"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the summary there too")
    _device_arguments(parser, batch_size=32)
    options = parser.parse_args(arguments)

    from hardpatch.data.loader import BadFiles, resolve_workers
    from hardpatch.data.sources import open_images
    from hardpatch.evaluate.difficulty import score
    from hardpatch.interchange.load import load_pair
    from hardpatch.report.terminal import counting, show_log, use_device

    show_log()
    device = use_device(options.device)
    student, teacher = load_pair(options.run, device=device)
    source = open_images(options.images)
    with counting("images scored") as progress:
        summary = score(
            student,
            teacher,
            source,
            out=options.out,
            masks=options.masks,
            mask_ratio=options.mask_ratio,
            draws=options.draws,
            seed=options.seed,
            pictures=options.pictures,
            batch_size=options.batch_size,
            workers=resolve_workers(options.workers),
            device=device,
            progress=progress,
        )
    BadFiles(len(source), 1.0).update(summary.bad)
    print(f"images: {summary.images}, skipped: {len(summary.bad)}")
    if summary.spearman is not None:
        print(f"Spearman correlation of predicted and true loss: {summary.spearman:.3f} (mean over images)")
    if summary.auc is not None and summary.true_loss_auc is not None:
        print(f"area under the ROC curve of predicted difficulty against the object masks: {summary.auc:.3f}", end=" ")
        print(f"(of the true loss: {summary.true_loss_auc:.3f})")
    print(f"pictures: {summary.contact_sheet} and {len(summary.pictures)} of single images; numbers: {summary.table}")
    if options.json is not None:
        _write_json(options.json, summary.to_dict())
    return 0


def _info(arguments: list[str]) -> int:
    parser = _Parser("info", "What a run or a weights file is.")
    parser.add_argument("run", metavar="RUN", help="run folder, .safetensors file or reference checkpoint")
    options = parser.parse_args(arguments)

    from hardpatch.report.run import describe

    print(describe(options.run), end="")
    return 0


def _recipes(arguments: list[str]) -> int:
    parser = _Parser("recipes", "The named runs; with a NAME, its text.")
    parser.add_argument("name", metavar="NAME", nargs="?")
    options = parser.parse_args(arguments)

    from hardpatch import recipes

    if options.name:
        print(recipes.text(options.name), end="")
        return 0
    names = recipes.names()
    for name in names:
        first = recipes.text(name).splitlines()[0].removeprefix("# ")
        print(f"{name:<{max(map(len, names))}}  {first}")
    return 0


def _write_json(path: Path, content: Any) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--json: cannot write {path}: {error.strerror}") from None


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text}")
    return int(text)


def _workers(text: str) -> int | str:
    if text != "auto" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected auto or a whole number from 0, got {text}")
    return text if text == "auto" else int(text)


if __name__ == "__main__":
    sys.exit(main())
