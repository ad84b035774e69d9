"""hardpatch knn and hardpatch linear."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardpatch.cli.arguments import Parser, at_least_one, device_arguments, write_json
from hardpatch.errors import UserError

if TYPE_CHECKING:
    import torch

    from hardpatch.measure.labels import LabeledFeatures


def knn(arguments: list[str]) -> int:
    parser = _evaluation_parser("knn", "k-NN accuracy with DINO's weighted vote (cosine, temperature 0.07).")
    parser.add_argument("--k", type=at_least_one, nargs="+", default=[10, 20, 100, 200], metavar="K")
    parser.add_argument("--temperature", type=float, default=0.07)
    options = parser.parse_args(arguments)
    if options.temperature <= 0:
        raise UserError(f"--temperature: expected a number above 0, got {options.temperature}")

    from hardpatch.measure.knn import knn_accuracy

    def measure(found: "LabeledFeatures", device: "torch.device") -> Any:
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


def linear(arguments: list[str]) -> int:
    from hardpatch.measure.linear import BASE_LRS, linear_probe

    parser = _evaluation_parser(
        "linear", "Linear probe on frozen features: all learning rates at once, the best reported."
    )
    parser.add_argument(
        "--optimizer", choices=("sgd", "lars"), default="sgd", help="sgd as MoCo v3, lars as MAE and HPM"
    )
    parser.add_argument("--epochs", type=at_least_one, default=90, metavar="N")
    parser.add_argument(
        "--base_lrs", type=float, nargs="+", default=list(BASE_LRS), metavar="LR", help="for a batch of 256"
    )
    parser.add_argument("--probe_batch_size", type=at_least_one, default=16384, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if min(options.base_lrs) <= 0:
        raise UserError(f"--base_lrs: expected numbers above 0, got {options.base_lrs}")

    def measure(found: "LabeledFeatures", device: "torch.device") -> Any:
        import torch

        return linear_probe(
            found.train,
            found.val,
            classes=len(found.classes),
            generator=torch.Generator().manual_seed(options.seed),
            base_lrs=options.base_lrs,
            optimizer=options.optimizer,
            epochs=options.epochs,
            batch_size=options.probe_batch_size,
            device=device,
        )

    def row(result: Any) -> str:
        each = "  ".join(f"{row.base_lr:g} {row.top1:.2%}" for row in result.rows)
        text = f"linear top-1 {result.top1:.2%}, top-5 {result.top5:.2%} (best base_lr {result.best_lr:g}; {each})"
        return text + (f"; {result.note}" if result.note else "")

    return _evaluate(options, measure, row)


def _evaluation_parser(verb: str, description: str) -> Parser:
    parser = Parser(verb, description)
    parser.add_argument("run", metavar="RUN", help="run folder, .safetensors file or reference checkpoint")
    parser.add_argument("--train", required=True, metavar="PATH", help="labeled images to learn from")
    parser.add_argument("--val", required=True, metavar="PATH", help="labeled images to be judged on")
    parser.add_argument(
        "--pool", choices=("mean", "class"), default="mean", help="mean of the patch tokens, or class token"
    )
    parser.add_argument("--weights", choices=("student", "teacher", "untrained"), default="student")
    parser.add_argument("--untrained", action="store_true", help="measure the random initialization beside it")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the numbers there too")
    parser.add_argument(
        "--cache",
        metavar="DIR",
        type=Path,
        help="where features are kept and found again (default: RUN/features of a run folder; for other weights none)",
    )
    parser.add_argument("--no_cache", action="store_true", help="compute all features anew and keep none")
    device_arguments(parser)
    return parser


def _evaluate(
    options: argparse.Namespace,
    measure: Callable[["LabeledFeatures", "torch.device"], Any],
    row: Callable[[Any], str],
) -> int:
    """Features of one or two models, a measurement on each, a line and a JSON entry for each."""
    from hardpatch.interchange.load import load
    from hardpatch.measure.distributed import process_group, process_rank
    from hardpatch.measure.labels import labeled_features
    from hardpatch.train.device import use_device
    from hardpatch.train.log import show_log
    from hardpatch.train.progress import counting

    show_log()
    cache = options.cache or (Path(options.run) / "features" if Path(options.run).is_dir() else None)
    results = {}
    with process_group(use_device(options.device)) as device:
        for weights in [options.weights, "untrained"] if options.untrained else [options.weights]:
            model = load(options.run, weights, device=device)
            with counting(f"features, {weights}") as progress:
                found = labeled_features(
                    model,
                    options.train,
                    options.val,
                    device=device,
                    pool=options.pool,
                    batch_size=options.batch_size,
                    workers=options.workers,
                    cache=None if options.no_cache else cache,
                    progress=progress,
                )
            if process_rank().rank == 0:  # the others have given their features and have nothing more to do
                result = measure(found, device)
                results[weights] = {**result.to_dict(), "skipped": found.train.bad + found.val.bad}
                print(f"{weights}: {row(result)}")
    if not results:
        return 0
    if options.json is not None:
        write_json(
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
