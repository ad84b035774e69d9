"""hardpatch score."""

from pathlib import Path

from hardpatch.cli.arguments import Parser, at_least_one, device_arguments, write_json


def score(arguments: list[str]) -> int:
    parser = Parser("score", "Predicted and true difficulty of images, as pictures and numbers (the paper's Fig. 2).")
    parser.add_argument("run", metavar="RUN", help="run folder, .safetensors file or reference checkpoint")
    parser.add_argument("images", metavar="IMAGES", nargs="+", help="files, folders, Parquet files, demo:test")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="folder for pictures and scores.parquet")
    parser.add_argument(
        "--masks", metavar="DIR", type=Path, help="object masks of the same file stems, for the ROC area"
    )
    parser.add_argument("--mask_ratio", type=float, metavar="R", help="share of masked patches (default: the run's)")
    parser.add_argument("--draws", type=at_least_one, default=10, metavar="N", help="random masks for the true loss")
    parser.add_argument(
        "--predict",
        choices=("whole", "masked"),
        help="what the teacher says of the whole image, or the student of each patch where it is masked (default: what "
        "the run mined by)",
    )
    parser.add_argument(
        "--pictures", type=int, default=32, metavar="N", help="images that get a picture; all get numbers"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the summary there too")
    device_arguments(parser, batch_size=32)
    options = parser.parse_args(arguments)

    from hardpatch.data.bad_files import BadFiles
    from hardpatch.data.sources import open_images
    from hardpatch.data.workers import resolve_workers
    from hardpatch.interchange.load import load_pair, load_target, training_masks
    from hardpatch.measure.score import score
    from hardpatch.train.device import use_device
    from hardpatch.train.log import show_log
    from hardpatch.train.progress import counting

    show_log()
    device = use_device(options.device)
    student, teacher = load_pair(options.run, device=device)
    source = open_images(options.images)
    ratio, mined_by = training_masks(options.run)
    with counting("images scored") as progress:
        summary = score(
            student,
            teacher,
            source,
            out=options.out,
            masks=options.masks,
            target=load_target(options.run, teacher, device=device),
            mask_ratio=ratio if options.mask_ratio is None else options.mask_ratio,
            draws=options.draws,
            predict=options.predict or mined_by,
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
        write_json(options.json, summary.to_dict())
    return 0
