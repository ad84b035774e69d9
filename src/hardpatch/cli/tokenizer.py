"""hardpatch tokenizer."""

import argparse
import math
from pathlib import Path

from hardpatch.cli.arguments import Parser, at_least_one, device_arguments
from hardpatch.errors import UserError

STEPS = 2000


def tokenizer(arguments: list[str]) -> int:
    parser = Parser("tokenizer", "Train visual tokens for BEiT (method.tokenizer) on images without labels.")
    parser.add_argument("--data", metavar="PATH", required=True, help="the images; demo:train is the embedded set")
    parser.add_argument(
        "--out", metavar="FILE", type=Path, required=True, help=".safetensors; .jsonl and .png beside it"
    )
    for name, default, text in (
        ("image_size", 64, "side of the crops, pixels"),
        ("patch_size", 8, "side of what becomes one token, pixels"),
        ("vocabulary", 512, "number of different tokens, up to 8192"),
        ("width", 64, "channels of the network where the tokens are"),
    ):
        parser.add_argument(f"--{name}", type=at_least_one, default=default, metavar="N", help=f"{text} (%(default)s)")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--steps", type=at_least_one, metavar="N", help=f"optimizer steps ({STEPS})")
    length.add_argument("--epochs", type=_positive, metavar="X", help="passes over the images, in place of --steps")
    parser.add_argument("--lr", type=_positive, default=3e-3, metavar="X", help="peak learning rate (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    device_arguments(parser, batch_size=128)
    options = parser.parse_args(arguments)

    from hardpatch.data.sources import open_source
    from hardpatch.data.workers import resolve_workers
    from hardpatch.pretrain import tokenizer as training
    from hardpatch.train.device import use_device
    from hardpatch.train.progress import TrainingProgress, show_log

    try:
        source = open_source(options.data)
    except UserError as error:
        raise UserError(f"--data: {error}") from None
    steps = options.steps or STEPS
    if options.epochs is not None:
        steps = max(1, round(options.epochs * len(source) / options.batch_size))
    settings = ("image_size", "patch_size", "vocabulary", "width", "batch_size", "lr", "seed")
    run = training.TokenizerRun(steps, **{name: getattr(options, name) for name in settings})
    training.initial_tokenizer(run)  # complains of sizes before anything is made
    device, workers = use_device(options.device), resolve_workers(options.workers)
    training.check_out(options.out)
    progress = TrainingProgress()
    show_log(progress.console)
    model, rows = training.train_tokenizer(source, run, device=device, workers=workers, progress=progress)
    quality = training.measure(model, source, run.image_size, device=device, batch_size=run.batch_size, workers=workers)
    training.write(
        options.out, model, run, quality, rows, training.picture(model, source, run.image_size, device=device)
    )
    metrics, pictured = training.companions(options.out)
    print(f"{options.out}: {steps} steps done, a token for every {run.patch_size} x {run.patch_size} px")
    print(f"reconstruction error {quality.error:.5f} (squared, pixels in [0, 1]), {quality.psnr:.1f} dB", end=" ")
    print(f"over {quality.images} images")
    print(f"tokens used: {quality.used} of {run.vocabulary}; entropy {quality.entropy:.2f} bits", end=" ")
    print(f"of at most {math.log2(run.vocabulary):.2f}, perplexity {quality.perplexity:.1f}")
    print(f"metrics: {metrics}; originals above reconstructions: {pictured}")
    print(f"use it with host beit (hardpatch recipes names some): --method.tokenizer {options.out}")
    return 0


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return number
