"""The verbs knn and linear."""

import argparse
from pathlib import Path
from typing import Any

from hardpatch.cli.arguments import (
    Images,
    Parser,
    architecture_of,
    column_arguments,
    image_arguments,
    number,
    view_arguments,
    weights_arguments,
    write_json,
)


def knn(arguments: list[str]) -> int:
    """Run ``hardpatch knn`` and return the exit code."""
    parser = _parser(
        "knn", "Measure k-NN accuracy of frozen features, with DINO's weighted vote over cosine similarities."
    )
    parser.add_argument(
        "--k",
        type=number("k"),
        nargs="+",
        default=[10, 20, 100, 200],
        metavar="K",
        help="numbers of neighbors; the best on --val is reported as in HPM, and k = 20 as in DINO beside it "
        "(default: 10 20 100 200)",
    )
    parser.add_argument(
        "--temperature",
        type=number("temperature"),
        default=0.07,
        metavar="X",
        help="temperature of the votes (default: %(default)s)",
    )
    options = parser.parse_args(arguments)

    from hardpatch.evaluate.probes import knn as measure

    def line(result: Any) -> str:
        each = "  ".join(f"k={row.k} {row.top1:.2%}" for row in result.rows)
        picked = f"best k {result.best_k}" + (", picked on --val" if len(result.rows) > 1 else "")
        dino = f"; k 20 as in DINO {result.dino.top1:.2%}" if result.dino is not None else ""
        return f"k-NN top-1 {result.top1:.2%} ({picked}{dino}; {each})"

    return _evaluate(options, measure, line, ks=options.k, temperature=options.temperature)


def linear(arguments: list[str]) -> int:
    """Run ``hardpatch linear`` and return the exit code."""
    options, rest = _with_protocol(Parser("linear", add_help=False)).parse_known_args(arguments)
    if options.protocol == "paper":
        from hardpatch.cli.finetune import paper_probe

        return paper_probe(rest)
    return _quick_probe(arguments)


def _quick_probe(arguments: list[str]) -> int:
    from hardpatch.measure.linear import BASE_LRS

    parser = _parser(
        "linear",
        "Train linear probes on frozen features with several learning rates at once, and report the best. The features "
        "are computed once, without augmentation, and the best rate is picked on --val: quick, but not the protocol of "
        "the paper. That is --protocol paper, a training in a folder of its own with other options: "
        "hardpatch linear --protocol paper --help.",
    )
    _with_protocol(parser)
    parser.add_argument(
        "--optimizer",
        choices=("sgd", "lars"),
        default="sgd",
        help="sgd as in HPM and MoCo v3, or lars as in MAE (default: %(default)s)",
    )
    parser.add_argument(
        "--epochs", type=number("epochs"), default=90, metavar="N", help="epochs of the probe (default: %(default)s)"
    )
    rates = parser.add_mutually_exclusive_group()
    rates.add_argument(
        "--base_lr",
        type=number("base_lr"),
        nargs="+",
        metavar="LR",
        help="learning rates for a batch of 256 (default: " + " ".join(f"{lr:g}" for lr in BASE_LRS) + ")",
    )
    rates.add_argument(
        "--lr", type=number("lr"), nargs="+", metavar="LR", help="absolute learning rates, in place of --base_lr"
    )
    parser.add_argument(
        "--probe_batch_size",
        type=number("probe_batch_size"),
        default=16384,
        metavar="N",
        help="features per step of the probe (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=number("seed"), default=0, metavar="N", help="seed of the probe (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    base_lrs = options.base_lr or list(BASE_LRS)
    if options.lr is not None:
        base_lrs = [lr * 256 / options.probe_batch_size for lr in options.lr]

    from hardpatch.evaluate.probes import linear as measure

    return _evaluate(
        options,
        measure,
        _probe_line,
        base_lrs=base_lrs,
        optimizer=options.optimizer,
        epochs=options.epochs,
        probe_batch_size=options.probe_batch_size,
        seed=options.seed,
    )


def _probe_line(result: Any) -> str:
    each = "  ".join(f"{row.base_lr:g} {row.top1:.2%}" for row in result.rows)
    picked = f"best base_lr {result.best_lr:g}" + (", picked on --val" if len(result.rows) > 1 else "")
    return f"linear top-1 {result.top1:.2%}, top-5 {result.top5:.2%} ({picked}; {each})"


def _with_protocol(parser: Parser) -> Parser:
    parser.add_argument(
        "--protocol",
        choices=("quick", "paper"),
        default="quick",
        help="quick: one pass over the images, best of several learning rates on --val; paper: 100 epochs of random "
        "crops, one learning rate (default: %(default)s)",
    )
    return parser


def _parser(verb: str, description: str) -> Parser:
    parser = Parser(verb, description)
    parser.add_argument("run", metavar="RUN", help="run folder, or weights of timm, Hugging Face, MAE, DINO")
    for name, use in (("train", "learn from"), ("val", "evaluate on")):
        about = f"labeled images to {use}; may be repeated"
        parser.add_argument(f"--{name}", required=True, metavar="PATH", action=Images, help=about)
    parser.add_argument(
        "--pool",
        choices=("mean", "class"),
        default="mean",
        help="mean of the patch tokens, or class token (default: %(default)s)",
    )
    weights_arguments(parser)
    parser.add_argument("--random_baseline", action="store_true", help="measure the random initialization, too")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the result to this file, too")
    parser.add_argument(
        "--cache",
        metavar="DIR",
        type=Path,
        help="folder of cached features (default: RUN/features for a run folder, none for other weights)",
    )
    parser.add_argument("--no_cache", action="store_true", help="neither read nor write cached features")
    view_arguments(parser)
    image_arguments(parser)
    column_arguments(parser)
    return parser


def _evaluate(options: argparse.Namespace, measure: Any, line: Any, **settings: Any) -> int:
    """Measure a run, print its accuracy and, if requested, that of its random initialization."""
    from hardpatch.train.log import show_log
    from hardpatch.train.progress import counting

    show_log()
    with counting("features") as progress:
        evaluation = measure(
            options.run,
            options.train,
            options.val,
            weights=options.weights,
            architecture=architecture_of(options),
            random_baseline=options.random_baseline,
            pool=options.pool,
            cache=None if options.no_cache else options.cache or "auto",
            batch_size=options.batch_size,
            workers=options.workers,
            max_bad_fraction=options.max_bad_fraction,
            device=options.device,
            image_column=options.image_column,
            label_column=options.label_column,
            image_size=options.image_size,
            blocks=options.blocks,
            progress=progress,
            **settings,
        )
    measured = evaluation.weights + (f" ({evaluation.unfinished})" if evaluation.unfinished else "")
    for name, result in ((measured, evaluation.result), ("random", evaluation.random)):
        if result is not None:
            print(f"{name}: {line(result)}" + (f"; {result.note}" if result.note else ""))
    if options.json is not None and evaluation.result is not None:
        write_json(options.json, evaluation.values)
    return 0
