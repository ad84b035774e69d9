"""The verb finetune."""

from hardpatch.cli.arguments import write_json
from hardpatch.cli.settings import given_settings, stopped, training_parser
from hardpatch.finetune.settings import PRESETS


def finetune(arguments: list[str]) -> int:
    """Run ``hardpatch finetune`` and return the exit code."""
    parser = training_parser("finetune", "Train the encoder of RUN and a linear layer on labeled images.", PRESETS)
    options = parser.parse_args(arguments)

    from hardpatch.finetune.run import finetune as train
    from hardpatch.train.log import show_log
    from hardpatch.train.progress import TrainingProgress

    progress = TrainingProgress()
    show_log(progress.console)
    result = train(
        options.run,
        options.train,
        options.val,
        options.out,
        preset=options.preset,
        resume=options.resume,
        progress=progress,
        arguments=["finetune", *arguments],
        **given_settings(options, PRESETS),
    )
    if not result.finished:
        return stopped("finetune", result.step, result.total, result.folder, result.signal)
    if options.json is not None:
        write_json(options.json, result.result)
    print(f"{result.folder}: {result.total} steps done, weights in {result.checkpoint}")
    print(f"accuracy of each class: {result.folder / 'result.json'}; pictures: {result.folder / 'pictures'}")
    print(
        f"top-1 {result.top1:.2%}, top-5 {result.top5:.2%} after the last epoch "
        f"(best epoch {result.best_epoch:.4g}: top-1 {result.best_top1:.2%})"
    )
    return 0
