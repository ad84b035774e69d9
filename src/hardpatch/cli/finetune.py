"""The verb finetune, and the protocol paper of the verb linear: trainings of a classifier in a run folder."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from hardpatch.cli.arguments import column_arguments
from hardpatch.cli.settings import given_settings, print_result, stopped, training_parser
from hardpatch.finetune.settings import AUTO, BY_SIZE, PRESETS, PROBES, FinetuneSettings

if TYPE_CHECKING:
    from hardpatch.finetune.finish import FinetuneResult


def finetune(arguments: list[str]) -> int:
    """Run ``hardpatch finetune`` and return the exit code."""
    from hardpatch.finetune.run import finetune as train

    return _train(
        "finetune",
        "Train the encoder of RUN and a linear layer on labeled images: first the layer, then both (preset auto).",
        PRESETS,
        train,
        arguments,
    )


def paper_probe(arguments: list[str]) -> int:
    """Run ``hardpatch linear --protocol paper``, its arguments without the protocol, and return the exit code."""
    from hardpatch.finetune.run import train_linear_probe as train

    about = (
        "Train a linear layer on the frozen features of random crops, as the paper does (Table S3). One learning rate, "
        "not chosen on --val."
    )
    return _train("linear --protocol paper", about, PROBES, train, arguments)


def _train(
    verb: str,
    description: str,
    presets: Mapping[str, FinetuneSettings],
    train: "Callable[..., FinetuneResult]",
    arguments: list[str],
) -> int:
    parser = training_parser(verb, description, presets, several=True, by_size=BY_SIZE if AUTO in presets else ())
    column_arguments(parser)
    parser.add_argument(
        "--target_columns",
        nargs="+",
        metavar="NAME",
        help="columns of 0 and 1 for each class (--task multilabel) or of numbers (--task regression); one column of "
        "lists, or of text with ; between the labels, is --label_column",
    )
    options = parser.parse_args(arguments)

    from hardpatch.train.display import open_display

    progress = open_display(options.display)
    result = train(
        options.run,
        options.train,
        options.val,
        options.out,
        image_column=options.image_column,
        label_column=options.label_column,
        target_columns=options.target_columns,
        resume=options.resume,
        progress=progress,
        arguments=[*verb.split(), *arguments],
        **({"preset": options.preset} if len(presets) > 1 else {}),
        **given_settings(options, presets),
    )
    if not result.finished:
        return stopped(options, verb, result.step, result.total, result.folder, result.signal)
    return print_result(options, result.result, _lines(verb, result))


def _lines(verb: str, result: "FinetuneResult") -> Iterator[str]:
    yield f"{result.folder}: {result.total} steps done, weights in {result.checkpoint}"
    if result.summary:
        yield f"{result.summary}; all numbers: {result.folder / 'result.json'}"
        return
    yield f"accuracy of each class: {result.folder / 'result.json'}; pictures: {result.folder / 'pictures'}"
    if "kept" in result.result:
        yield _both(result.result)
    best = f" (best epoch {result.best_epoch:.4g}: top-1 {result.best_top1:.2%})" if verb == "finetune" else ""
    if result.result.get("kept") == "probe":
        yield f"top-1 {result.top1:.2%}, top-5 {result.top5:.2%} of the probe"
    else:
        yield f"top-1 {result.top1:.2%}, top-5 {result.top5:.2%} after the last epoch{best}"


def _both(result: Mapping[str, Any]) -> str:
    """Return the line about the probe and the network that was trained from there."""
    probe, trained = result["probe"], result["fine_tuned"]
    if trained is None:
        return f"probe {probe['top1']:.2%} on --val, not trained further"
    better = "better" if result["kept"] == "fine-tuned" else "not better"
    return (
        f"probe {probe['top1']:.2%}, fine-tuned {trained['top1']:.2%} on --val; kept: {result['kept']} (on "
        f"held-out images of --train {probe['held_out_top1']:.2%} and "
        f"{trained['held_out_top1']:.2%}: {better} by more than a standard error, {result['standard_error']:.2%})"
    )
