"""hardpatch bench."""

from pathlib import Path

from hardpatch.cli.arguments import Parser, at_least_one, write_json
from hardpatch.errors import UserError

SMALL = {
    "data": {"image_size": 32},
    "model": {"size": "tiny", "patch_size": 4, "decoder_width": 192, "decoder_depth": 4, "decoder_heads": 3},
}
"""The sizes without a recipe."""

SIZES = {
    "size": "model.size",
    "image_size": "data.image_size",
    "patch_size": "model.patch_size",
    "decoder_width": "model.decoder_width",
    "decoder_depth": "model.decoder_depth",
    "decoder_heads": "model.decoder_heads",
}
"""Short names of settings, and the settings."""

NAMES = "hpm,mae,hpm_fast,transformers,lightly,literal"


def bench(arguments: list[str]) -> int:
    if arguments[:1] == ["data"]:
        from hardpatch.cli.bench_data import bench_data

        return bench_data(arguments[1:])
    parser = Parser(
        "bench", "Time one optimizer step of several methods, in turns within one run, on synthetic images."
    )
    parser.usage = (
        "hardpatch bench [--recipe NAME] [--contenders A,B,...] [--SETTING VALUE], or hardpatch bench data ..."
    )
    parser.add_argument(
        "--contenders", default=NAMES, metavar="A,B,...", help="of %(default)s and recipes; default all"
    )
    parser.add_argument("--base", metavar="A,...", help="what the others are held against (literal,mae)")
    parser.add_argument("--recipe", metavar="NAME", help="sizes of a named run; default: ViT-tiny, 32 px, patches of 4")
    for name, setting in SIZES.items():
        parser.add_argument(f"--{name}", metavar="X", help=f"short for --{setting}")
    parser.add_argument("--batch_size", type=at_least_one, default=64, metavar="N", help="default: %(default)s")
    parser.add_argument("--repeats", type=at_least_one, default=15, metavar="N", help="turns of each (%(default)s)")
    parser.add_argument("--steps", type=at_least_one, metavar="N", help="steps of a turn; default: 1, on a GPU 5")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    parser.add_argument("--precision", default="auto", choices=("auto", "fp32", "bf16"))
    parser.add_argument(
        "--compile",
        nargs="?",
        const="yes",
        choices=("yes", "cuda_graphs"),
        help="torch.compile, of all but literal; cuda_graphs: with these too",
    )
    parser.add_argument(
        "--apart", action="store_true", help="each in a process of its own, other libraries with glibc's own allocator"
    )
    parser.add_argument("--threads", type=at_least_one, metavar="N", help="of the CPU")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured here too")
    options, settings = parser.parse_known_args(arguments)

    import torch

    from hardpatch.bench.compare import as_json, compare, markdown
    from hardpatch.bench.timing import device_name
    from hardpatch.pretrain import config, recipes
    from hardpatch.train.device import PRECISIONS, start_fabric
    from hardpatch.train.progress import counting

    if options.threads is not None:
        torch.set_num_threads(options.threads)
    fabric = start_fabric(options.device, options.precision, "--")  # settles the CPU's allocator for all alike
    short = [f"--{SIZES[name]}={getattr(options, name)}" for name in SIZES if getattr(options, name) is not None]
    values = recipes.read(options.recipe) if options.recipe else SMALL
    precision = next(name for name, value in PRECISIONS.items() if value == fabric.strategy.precision.precision)
    fixed = [f"--batch_size={options.batch_size}", "--steps=1000", "--optim.accumulation_steps=1"]
    fixed += [f"--train.device={options.device}", f"--train.precision={precision}"]
    if options.compile:
        fixed.append(f"--train.compile={options.compile}")
    run = config.build(values, [*fixed, *short, *settings])
    if options.apart and fabric.device.type != "cpu":
        raise UserError(f"--apart: for a CPU, whose allocator it is about; leave it out on {fabric.device.type}")
    names, bases = options.contenders.split(","), (options.base or "literal,mae").split(",")
    if len(set(names)) < len(names):
        raise UserError(f"--contenders: expected each once, got {options.contenders}")
    if options.base and not set(bases) <= set(names):
        raise UserError(f"--base: expected some of --contenders {options.contenders}, got {options.base}")
    with counting("rounds") as told:
        report = compare(
            run,
            names,
            fabric,
            bases=bases,
            turns=options.repeats,
            apart=options.apart,
            steps=options.steps or (5 if fabric.device.type == "cuda" else 1),
            told=told,
        )
    machine = f"{device_name(fabric.device)}, torch {torch.__version__}, {precision}"
    print(f"{machine}, batch {run.batch_size}, a matrix product {report.product_rate.middle / 1e12:.3g} TFLOP/s\n")
    print(markdown(report, bases), end="")
    if options.json:
        write_json(options.json, {"machine": machine, "run": config.to_dict(run), **as_json(report)})
    return 0
