"""hardpatch embed."""

from pathlib import Path

from hardpatch.cli.arguments import Parser, device_arguments
from hardpatch.errors import UserError


def embed(arguments: list[str]) -> int:
    parser = Parser("embed", "One vector for each image, into a Parquet file with the columns path and embedding.")
    parser.add_argument("run", metavar="RUN", help="run folder, .safetensors file or reference checkpoint")
    parser.add_argument("images", metavar="IMAGES", nargs="+", help="files, folders, Parquet files, demo:test")
    parser.add_argument("--out", metavar="FILE", type=Path, required=True, help="the Parquet file; must not exist")
    parser.add_argument(
        "--pool", choices=("mean", "class"), default="mean", help="mean of the patch tokens, or class token"
    )
    parser.add_argument("--weights", choices=("student", "teacher", "untrained"), default="student")
    parser.add_argument("--normalize", action="store_true", help="bring every vector to length 1, for cosine search")
    device_arguments(parser)
    options = parser.parse_args(arguments)
    if options.out.exists():
        raise UserError(f"--out: expected a file that does not exist yet, got {options.out}; take another name")

    from hardpatch.data.bad_files import BadFiles
    from hardpatch.data.sources import open_images
    from hardpatch.evaluate.embeddings import write_embeddings
    from hardpatch.interchange.load import load
    from hardpatch.train.device import use_device
    from hardpatch.train.log import show_log
    from hardpatch.train.progress import counting

    show_log()
    device = use_device(options.device)
    model = load(options.run, options.weights, device=device)
    source = open_images(options.images)
    with counting("images embedded") as progress:
        written, bad = write_embeddings(
            model,
            source,
            options.out,
            device=device,
            pool=options.pool,
            normalize=options.normalize,
            batch_size=options.batch_size,
            workers=options.workers,
            progress=progress,
        )
    BadFiles(len(source), 1.0).update(bad)
    print(f"{options.out}: {written} vectors of {model.host.encoder.width} numbers, skipped: {len(bad)}")
    return 0
