"""Run the rows of a table: train, measure, keep what is done, stop cleanly, go on where it stopped."""

import json
import multiprocessing
import multiprocessing.connection
import shlex
import signal
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from hardpatch import __version__
from hardpatch.data.workers import resolve_workers
from hardpatch.errors import TrainingError, UserError
from hardpatch.pretrain import config
from hardpatch.pretrain.sections import RunConfig
from hardpatch.study import table as output
from hardpatch.study.rows import METRICS, Row, Table
from hardpatch.study.scales import SCALES, configure
from hardpatch.train.progress import Progress

if TYPE_CHECKING:
    from hardpatch.finetune.settings import FinetuneRun
    from hardpatch.pretrain.tokenizer import TokenizerRun

WEIGHTS_NEEDED = {"dino": "--dino_weights", "clip": "--clip_weights"}
"""Frozen networks of the tables, and the argument that names their weights; a study downloads nothing."""

PREDICTOR = Row(name="predictor", settings={"method.predicting_loss": "relative"})
"""The pre-training run that says which patches are hard, for rows under labels: HPM with the scale's settings."""


TOKENIZER = Row(name="tokenizer")
"""The training of BEiT's visual tokens, for rows with that host, unless a file of them is given."""


class Stopped(Exception):  # noqa: N818 - a request, no error
    """SIGINT or SIGTERM came."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass(frozen=True)
class Study:
    """One table at one scale."""

    table: Table
    scale: str
    out: Path
    """Folder of the study."""
    data: str
    """Images to train on."""
    train: str
    """Labeled images that vote, and that the linear probe learns from."""
    val: str
    """Labeled images to be judged on."""
    seeds: int = 1
    jobs: int = 1
    """Rows side by side, each in a process of its own."""
    settings: tuple[str, ...] = ()
    """The user's, for all rows, as command-line arguments."""
    weights: Mapping[str, str] | None = None
    """Files of frozen networks by name."""
    tokenizer: str | None = None
    """BEiT's; None trains one on the data first."""
    arguments: tuple[str, ...] = ()
    """The command line that this came from."""

    @property
    def command(self) -> str:
        """What to type to go on with it."""
        return shlex.join(["hardpatch", "study", *self.arguments])


@dataclass(frozen=True)
class Task:
    """A run of one row with one seed, or of what rows need first."""

    row: Row
    seed: int
    run: RunConfig
    folder: Path

    @property
    def name(self) -> str:
        """What it is called on the terminal."""
        return f"{self.row.name}, seed {self.seed}" if self.row != TOKENIZER else self.row.name


def run_study(study: Study) -> int:
    """Run what is not done yet, then write the table.

    Returns:
        The exit code: 0, 1 where a row failed, 128 + n where signal n stopped it.

    Raises:
        UserError: for a mistake in the settings or the data, before anything is run.
    """
    tasks, reasons = plan(study)
    check(study, tasks)
    try:
        study.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out: expected a folder that can be written, got {study.out}: {error.strerror}") from None
    todo = [[task for task in stage if not _is_done(task)] for stage in tasks]
    print(f"{study.table.title}: {sum(map(len, tasks))} runs, {sum(map(len, todo))} of them to do", flush=True)
    for key, reason in reasons.items():
        print(f"{next(row.name for row in study.table.rows if row.key == key)}: not run, {reason}", flush=True)
    failed: dict[str, str] = {}
    stopped = 0
    try:
        with interruptions():
            for stage in todo:
                ended = _one_by_one(study, stage) if study.jobs == 1 else _side_by_side(study, stage)
                with closing(ended):
                    for task, reason in ended:
                        if reason:
                            failed[task.row.key] = reason
                            print(f"{task.name}: failed: {reason}", file=sys.stderr, flush=True)
                        else:
                            print(_summary(task), flush=True)
                        _write(study, reasons | failed)
    except Stopped as request:
        stopped = request.number
    lines = _write(study, reasons | failed)
    output.draw(study.out, study.table, lines, _about(study))
    if stopped:
        print(f"stopped; what is done is kept, go on with: {study.command}")
        return 128 + stopped
    print(f"table: {study.out / 'table.md'}")
    return 1 if failed else 0


def plan(study: Study) -> tuple[list[list[Task]], dict[str, str]]:
    """What there is to run, in stages of which each needs those before, and why some rows cannot be run, by key."""
    table = study.table
    reasons: dict[str, str] = {}
    runs: list[tuple[Row, RunConfig]] = []
    for row in table.rows:
        own = {**table.base, **row.settings}
        given: dict[str, Any] = {}
        if "method.frozen" in own:
            weights = (study.weights or {}).get(own["method.frozen"])
            if weights is None:
                reasons[row.key] = f"it needs {WEIGHTS_NEEDED[own['method.frozen']]} FILE"
                continue
            given["method.frozen_weights"] = weights
        if own.get("method.host") == "beit":
            given["method.tokenizer"] = study.tokenizer or str(_own_tokenizer(study))
        runs.append((row, _configure(study, table, row, given)))
    before = []
    if any(row.keep in ("hardest", "easiest") for row in table.rows):
        before.append((PREDICTOR, _configure(study, replace(table, base={}), PREDICTOR, {})))
    stages = [
        [
            Task(row, seed, replace(run, seed=run.seed + seed), study.out / row.key / f"seed_{seed}")
            for seed in range(study.seeds)
            for row, run in stage
        ]
        for stage in (before, runs)
    ]
    beit = next((run for _, run in runs if run.method.host == "beit"), None)
    if beit is not None and study.tokenizer is None:  # one for all seeds
        stages[0].append(Task(TOKENIZER, 0, beit, study.out / TOKENIZER.key))
    return [stage for stage in stages if stage], reasons


def tokenizer_run(study: Study, task: Task) -> "TokenizerRun":
    """How BEiT's visual tokens are made."""
    from hardpatch.pretrain.tokenizer import TokenizerRun

    return TokenizerRun(**SCALES[study.scale].tokenizer, seed=task.run.seed)


def finetuning(study: Study, run: str, seed: int, device: str, workers: int | str) -> "FinetuneRun":
    """How the pre-trained network in the folder ``run`` is fine-tuned."""
    from hardpatch.finetune.settings import configure as configure_finetuning

    own = SCALES[study.scale].finetune
    given = {"run": run, "train": study.train, "val": study.val, "seed": seed, "device": device, "workers": workers}
    return configure_finetuning(**{**given, **own})


def check(study: Study, tasks: Sequence[Sequence[Task]]) -> None:
    """Look at everything that can be wrong before the first step.

    Raises:
        UserError: if images cannot be read or have no labels, or what is in the folder was made otherwise.
    """
    from hardpatch.data.sources import open_source
    from hardpatch.measure.features import align_labels

    sources = []
    for argument, path in (("--data", study.data), ("--train_labeled", study.train), ("--val", study.val)):
        try:
            sources.append(open_source(path))
        except UserError as error:
            raise UserError(f"{argument}: {error}") from None
    align_labels(*sources[1:])
    if study.out.exists() and not study.out.is_dir():
        raise UserError(f"--out: expected a folder, {study.out} is a file")
    made = study.out / "table.json"
    if made.is_file():
        then = json.loads(made.read_text(encoding="utf-8"))
        for name, now in (
            ("table", study.table.name),
            ("scale", study.scale),
            ("train", study.train),
            ("val", study.val),
        ):
            if then.get(name) != now:
                raise UserError(
                    f"--out: the study in {study.out} has {name} {then.get(name)}, now {now}; take another --out"
                )
    from hardpatch.pretrain.folder import check_resume

    for stage in tasks:
        for task in stage:
            if (task.folder / "config.yaml").is_file():
                try:
                    check_resume(task.folder, task.run)
                except UserError as error:
                    raise UserError(f"--out: {str(error).removeprefix('--resume: ')}") from None


def perform(study: Study, task: Task, progress: Progress) -> None:
    """Train and measure one row, from where it is, and write its ``result.json``.

    Raises:
        Stopped: on a signal, with everything on the disk to go on.
        UserError, TrainingError: as the training and the measurement do.
    """
    began = time.monotonic()
    if task.row == TOKENIZER:
        _train_tokenizer(study, task, progress)
        measured = {}
    elif task.row.keep is None:
        _pretrain(study, task, progress)
        measured = {} if task.row == PREDICTOR else {**_measure(study, task), **_finetune(study, task, progress)}
    else:
        measured = _train_supervised(study, task, progress)
    metrics = {key: measured[key]["top1"] for key in METRICS if key in measured}
    result = {
        "table": study.table.name,
        "row": task.row.name,
        "scale": study.scale,
        "seed": task.seed,
        "metrics": metrics,
        "details": measured,
        "train": study.train,
        "val": study.val,
        "seconds": time.monotonic() - began,
        "hardpatch": __version__,
        "config": config.to_dict(task.run),
    }
    output.write_text(task.folder / output.RESULT, json.dumps(result, indent=2) + "\n")


@contextmanager
def interruptions() -> Iterator[None]:
    """SIGINT and SIGTERM raise :class:`Stopped`; a second one of the kind does what it always does."""

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, previous[number])
        raise Stopped(number)

    previous: dict[int, Any] = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _configure(study: Study, table: Table, row: Row, given: Mapping[str, Any]) -> RunConfig:
    run = configure(table, row, SCALES[study.scale], data=study.data, settings=study.settings, given=given)
    if study.jobs > 1 and run.data.workers == "auto":  # they share the cores
        return replace(run, data=replace(run.data, workers=max(1, resolve_workers("auto") // study.jobs)))
    return run


def _is_done(task: Task) -> bool:
    return (task.folder / output.RESULT).is_file()


def _one_by_one(study: Study, tasks: Sequence[Task]) -> Generator[tuple[Task, str], None, None]:
    """Each task in this process, and why it failed (empty if it did not)."""
    from hardpatch.train.progress import TrainingProgress

    bar = TrainingProgress()
    progress = bar if bar.console.is_terminal else Quiet()
    for task in tasks:
        try:
            perform(study, task, progress)
        except (UserError, TrainingError) as error:
            yield task, str(error)
        else:
            yield task, ""


def _side_by_side(study: Study, tasks: Sequence[Task]) -> Generator[tuple[Task, str], None, None]:
    """Up to ``study.jobs`` tasks at once, each in a process of its own, as they end."""
    context = multiprocessing.get_context("spawn")
    waiting = list(tasks)
    running: dict[int, tuple[Task, Any, multiprocessing.connection.Connection]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < study.jobs:
                task = waiting.pop(0)
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_process, args=(study, task, theirs), name=task.name)
                process.start()
                theirs.close()
                running[process.sentinel] = (task, process, ours)
            for sentinel in multiprocessing.connection.wait(list(running)):
                assert isinstance(sentinel, int)
                task, process, ours = running.pop(sentinel)
                process.join()
                try:
                    said = ours.recv()
                except EOFError:  # it did not come to say anything
                    said = f"its process ended with exit code {process.exitcode}"
                ours.close()
                yield task, said
    finally:
        for _, process, _ in running.values():
            process.terminate()  # they save, as on any SIGTERM
        for _, process, ours in running.values():
            process.join()
            ours.close()


def _process(study: Study, task: Task, told: multiprocessing.connection.Connection) -> None:
    """What a process of :func:`_side_by_side` does; says why it failed, or an empty string."""
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // study.jobs))
    try:
        with interruptions():
            perform(study, task, Quiet())
    except (UserError, TrainingError) as error:
        told.send(str(error))
    except Stopped as request:
        sys.exit(128 + request.number)
    else:
        told.send("")


class Quiet:
    """No bar: the log of a run is in its folder."""

    def start(self, step: int, total: int, batch_size: int) -> None:
        """Nothing."""

    def advance(self) -> None:
        """Nothing."""

    def metrics(self, row: dict[str, Any]) -> None:
        """Nothing."""

    def stop(self) -> None:
        """Nothing."""


def _pretrain(study: Study, task: Task, progress: Progress) -> None:
    """As ``hardpatch pretrain`` does it, but for the pictures."""
    from hardpatch.pretrain import folder as run_folder
    from hardpatch.pretrain.run import pretrain
    from hardpatch.train.progress import show_log

    def prepare() -> None:
        run_folder.write(task.folder, task.run, ["study", *study.arguments])
        show_log(file=task.folder / "log.txt")

    outcome = pretrain(task.run, task.folder, progress, prepare)
    if not outcome.finished:
        raise Stopped(outcome.signal)


def _measure(study: Study, task: Task) -> dict[str, Any]:
    """k-NN and linear probe of the student's frozen features, which are computed once."""
    import torch

    from hardpatch.interchange.load import load
    from hardpatch.measure.knn import knn_accuracy
    from hardpatch.measure.labels import labeled_features
    from hardpatch.measure.linear import linear_probe

    device = _device(task.run)
    data = task.run.data
    found = labeled_features(
        load(task.folder, device=device),
        study.train,
        study.val,
        device=device,
        workers=data.workers,
        max_bad_fraction=data.max_bad_fraction,
    )
    classes = len(found.classes)
    knn = knn_accuracy(found.train, found.val, classes=classes, device=device)
    generator = torch.Generator().manual_seed(task.run.seed)
    linear = linear_probe(found.train, found.val, classes=classes, generator=generator, device=device)
    return {"knn": knn.to_dict(), "linear": linear.to_dict()}


def _finetune(study: Study, task: Task, progress: Progress) -> dict[str, Any]:
    """As ``hardpatch finetune`` does it, by the scale's preset, from where it is."""
    from hardpatch.finetune.run import finetune

    train, folder = task.run.train, task.folder / "finetune"
    run = finetuning(study, str(task.folder), task.run.seed, train.device, task.run.data.workers)
    resume = (folder / "config.yaml").is_file()
    result = finetune(run, folder, resume=resume, progress=progress, arguments=["study", *study.arguments])
    if not result.finished:
        raise Stopped(result.signal)
    return {"finetune": {"top1": result.top1, "top5": result.top5, "best_top1": result.best_top1}}


def _train_tokenizer(study: Study, task: Task, progress: Progress) -> None:
    """As ``hardpatch tokenizer`` does it; not in pieces, a kill costs all of it."""
    from hardpatch.data.sources import open_source
    from hardpatch.pretrain import tokenizer as training

    task.folder.mkdir(parents=True, exist_ok=True)
    out = _own_tokenizer(study)
    if out.is_file():
        return
    source, run, device = open_source(study.data), tokenizer_run(study, task), _device(task.run)
    workers = resolve_workers(task.run.data.workers)
    for path in training.companions(out):  # of a run that was killed while it wrote them
        path.unlink(missing_ok=True)
    model, rows = training.train_tokenizer(source, run, device=device, workers=workers, progress=progress)
    quality = training.measure(model, source, run.image_size, device=device, batch_size=run.batch_size, workers=workers)
    training.write(out, model, run, quality, rows, training.picture(model, source, run.image_size, device=device))


def _own_tokenizer(study: Study) -> Path:
    return study.out / "tokenizer.safetensors"


def _train_supervised(study: Study, task: Task, progress: Progress) -> dict[str, Any]:
    from hardpatch.interchange.load import load
    from hardpatch.study.table_d import train_supervised

    assert task.row.keep is not None
    device = _device(task.run)
    predictor = None
    if task.row.keep in ("hardest", "easiest"):
        pretrained = study.out / PREDICTOR.key / f"seed_{task.seed}"
        if not (pretrained / output.RESULT).is_file():
            raise UserError(f"the run that says which patches are hard is not done: {pretrained}")
        predictor = load(pretrained, "teacher", device=device)
    task.folder.mkdir(parents=True, exist_ok=True)
    output.write_text(task.folder / "config.yaml", f"# {study.command}\n{config.to_yaml(task.run)}")
    found = train_supervised(task.run, task.folder, study.val, task.row.keep, predictor, progress, device)
    return {key: {"top1": value} for key, value in found.items()}


def _device(run: RunConfig) -> Any:
    from hardpatch.train.device import use_device

    return use_device(run.train.device)


def _summary(task: Task) -> str:
    result = json.loads((task.folder / output.RESULT).read_text(encoding="utf-8"))
    told = ", ".join(f"{METRICS[key]} {value:.2%}" for key, value in result["metrics"].items())
    return f"{task.name}: {told or 'done'} ({result['seconds'] / 60:.1f} min)"


def _write(study: Study, reasons: Mapping[str, str]) -> list[output.Line]:
    lines = output.collect(study.table, study.out, study.seeds, reasons)
    output.write(study.out, study.table, lines, _about(study))
    return lines


def _about(study: Study) -> dict[str, Any]:
    return {
        "scale": study.scale,
        "scale_about": SCALES[study.scale].about,
        "seeds": study.seeds,
        "data": study.data,
        "train": study.train,
        "val": study.val,
        "command": study.command,
    }
