"""The verb bench."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from hardpatch.cli.arguments import Parser, number, write_json
from hardpatch.errors import UserError

if TYPE_CHECKING:
    from hardpatch.configuration.sections import RunConfig

SMALL = {
    "data": {"image_size": 32},
    "model": {"size": "tiny", "patch_size": 4, "decoder_width": 192, "decoder_depth": 4, "decoder_heads": 3},
}
"""Sizes that are timed without a recipe."""

SIZES = {
    "size": "model.size",
    "image_size": "data.image_size",
    "patch_size": "model.patch_size",
    "decoder_width": "model.decoder_width",
    "decoder_depth": "model.decoder_depth",
    "decoder_heads": "model.decoder_heads",
}
"""Settings with a short name, by that name."""

NAMES = "hpm,mae,hpm_fast,transformers,lightly,literal"
BASES = "literal,mae"


def bench(arguments: list[str]) -> int:
    """Run ``hardpatch bench`` and return the exit code."""
    if arguments[:1] == ["data"]:
        from hardpatch.cli.bench_data import bench_data

        return bench_data(arguments[1:])
    options, settings = _parser().parse_with_settings(arguments)
    names, bases = options.contenders.split(","), (options.base or BASES).split(",")
    if len(set(names)) < len(names):
        raise UserError(f"--contenders: expected each name once, got {options.contenders}")
    if options.base and not set(bases) <= set(names):
        raise UserError(f"--base: expected names from --contenders {options.contenders}, got {options.base}")

    import torch

    from hardpatch.bench.compare import compare
    from hardpatch.bench.timing import device_name
    from hardpatch.configuration import config
    from hardpatch.train.device import PRECISIONS, start_fabric
    from hardpatch.train.progress import counting

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    fabric = start_fabric(options.device, options.precision, "--")  # settles the CPU's allocator for all contenders
    precision = next(name for name, value in PRECISIONS.items() if value == fabric.strategy.precision.precision)
    run = _run(options, settings, precision)
    if options.separate_processes and fabric.device.type != "cpu":
        raise UserError(
            f"--separate_processes: compares allocators of a CPU, got device {fabric.device.type}; leave it out"
        )
    with counting("rounds") as progress:
        result = compare(
            run,
            names,
            fabric,
            bases=bases,
            turns=options.repeats,
            separate_processes=options.separate_processes,
            steps=options.steps or (5 if fabric.device.type == "cuda" else 1),
            progress=progress,
        )
    machine = f"{device_name(fabric.device)}, torch {torch.__version__}, {precision}"
    rate = result.matrix_product_rate.median / 1e12
    print(f"{machine}, batch {run.batch_size}, a matrix product {rate:.3g} TFLOP/s\n")
    print(result.to_markdown(bases), end="")
    if options.json:
        write_json(options.json, {"machine": machine, "run": config.to_dict(run), **result.to_dict()})
    return 0


def _run(options: argparse.Namespace, settings: list[str], precision: str) -> "RunConfig":
    """Build the configuration whose step is timed."""
    from hardpatch.configuration import config
    from hardpatch.pretrain import recipes

    sizes = [f"--{SIZES[name]}={getattr(options, name)}" for name in SIZES if getattr(options, name) is not None]
    fixed = [f"--batch_size={options.batch_size}", "--steps=1000", "--optim.accumulation_steps=1"]
    fixed += [f"--train.device={options.device}", f"--train.precision={precision}"]
    if options.compile:
        fixed.append(f"--train.compile={options.compile}")
    return config.build(recipes.read(options.recipe) if options.recipe else SMALL, [*fixed, *sizes, *settings])


def _parser() -> Parser:
    parser = Parser("bench", "Benchmark a training step against other libraries.")
    parser.usage = (
        "hardpatch bench [--recipe NAME] [--contenders A,B,...] [--SETTING VALUE]\n       hardpatch bench data ..."
    )
    parser.add_argument(
        "--contenders",
        default=NAMES,
        metavar="A,B,...",
        help="models to time, which may be recipes (default: %(default)s)",
    )
    parser.add_argument("--base", metavar="A,...", help=f"contenders to compare the others with (default: {BASES})")
    parser.add_argument(
        "--recipe", metavar="NAME", help="named run whose sizes are used (default: ViT-tiny, 32 px, patches of 4)"
    )
    for name, setting in SIZES.items():
        parser.add_argument(f"--{name}", metavar="X", help=f"short for --{setting}")
    parser.add_argument(
        "--batch_size",
        type=number("batch_size"),
        default=64,
        metavar="N",
        help="images per step (default: %(default)s)",
    )
    parser.add_argument(
        "--repeats",
        type=number("repeats"),
        default=15,
        metavar="N",
        help="turns of each contender (default: %(default)s)",
    )
    parser.add_argument(
        "--steps", type=number("steps"), metavar="N", help="steps per turn (default: 5 on a GPU, else 1)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps (default: auto)")
    parser.add_argument(
        "--precision",
        default="auto",
        choices=("auto", "fp32", "bf16"),
        help="auto is bf16 on a GPU that has it, else fp32 (default: auto)",
    )
    parser.add_argument(
        "--compile",
        nargs="?",
        const="yes",
        choices=("yes", "cuda_graphs"),
        help="compile all contenders but literal; cuda_graphs also captures CUDA graphs (default: no)",
    )
    parser.add_argument(
        "--separate_processes",
        action="store_true",
        help="run each contender in a process of its own, other libraries with glibc's default allocator settings",
    )
    parser.add_argument("--threads", type=number("threads"), metavar="N", help="CPU threads (default: torch's choice)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements to this file, too")
    return parser
