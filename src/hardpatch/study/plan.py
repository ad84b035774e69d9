"""Plan of a study: its runs in the order of their dependencies; rows with the same settings share a run."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from hardpatch.configuration.sections import RunConfig
from hardpatch.data.columns import AUTO, Columns
from hardpatch.data.workers import resolve_workers
from hardpatch.study.names import run_name
from hardpatch.study.rows import METRICS, Keep, Measure, Metric, StudyRow, Table
from hardpatch.study.scales import SCALES, Scale, configure

RESULT = "measurements.json"
"""File in the folder of a run, rewritten after each of its measurements."""

WEIGHTS_ARGUMENTS = {"dino": "--dino_weights", "clip": "--clip_weights"}
"""The argument that names the weights of each frozen network; a study downloads nothing."""

DETECT_ARGUMENTS = ("detect_train", "detect_annotations", "detect_val", "detect_val_annotations")
"""Arguments that name the images of detection, in the order of :attr:`Study.detect`."""

SEGMENT_ARGUMENTS = ("segment_train", "segment_val")
"""Arguments that name the images of segmentation."""

DATA_ARGUMENTS: dict[Measure, tuple[str, ...]] = {
    "detect": DETECT_ARGUMENTS,
    "segment": SEGMENT_ARGUMENTS,
    "segment_160k": SEGMENT_ARGUMENTS,
}
"""The arguments that name the images of each downstream task."""

HPM_ROW = StudyRow(name="HPM")
"""HPM with the scale's settings, whose loss predictor ranks the patches of Table D."""

NO_TABLE = Table("", "", (), ())
"""A table without settings of its own."""

Kind = Literal["tokenizer", "supervised_teacher", "pretrain", "scratch", "half"]


@dataclass(frozen=True)
class Study:
    """Tables at one scale."""

    tables: tuple[Table, ...]
    scale: str
    out: Path
    """Folder of the study."""
    data: str
    """Images to train on."""
    train: str
    """Labeled images for the k-NN vote, the linear probe and fine-tuning."""
    val: str
    """Labeled images to evaluate on."""
    columns: Columns = AUTO
    """Columns of tables."""
    seeds: int = 1
    jobs: int = 1
    """Number of runs at a time, each in its own process."""
    settings: tuple[str, ...] = ()
    """The user's settings for all rows, as command-line arguments."""
    measures: tuple[Measure, ...] | None = None
    """Measurements to make; None makes those of the scale."""
    detect: tuple[str, ...] | None = None
    """Images and annotations to learn detection from, and images and annotations to evaluate it on."""
    segment: tuple[str, ...] | None = None
    """Folders of images and label maps to learn segmentation from, and to evaluate it on."""
    segment_classes: str | None = None
    """Number of classes of ``segment``, or a file of their names; None reads ``classes.txt`` of its first folder."""
    reduce_zero_label: bool = False
    """True for label maps in which 0 is no class, as ADE20K's."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """Weight files of frozen networks, by network."""
    tokenizer: str | None = None
    """Folder or file of BEiT's visual tokens; None trains them on the data first."""
    arguments: tuple[str, ...] = ()
    """Command line that describes this study."""

    @property
    def command(self) -> str:
        """Command that starts or resumes the study."""
        return shlex.join(["hardpatch", "study", *self.arguments])

    @property
    def trained_tokenizer(self) -> Path:
        """Folder of the visual tokens that the study trains."""
        return self.out / "trained_tokenizer"

    @property
    def supervised_teacher(self) -> Path:
        """Folder of the classifier that the study trains, whose features are a target of Table 1."""
        return self.out / "supervised_teacher" / "finetune"


@dataclass(frozen=True)
class Task:
    """One run with one seed, and the measurements that the tables need of it."""

    kind: Kind
    run_name: str
    """The same for all seeds."""
    seed: int
    run: RunConfig
    folder: Path
    measures: tuple[Measure, ...] = ()
    keep: Keep | None = None
    """Patches that a supervised network sees."""
    large: bool = False

    @property
    def name(self) -> str:
        """Name on the terminal."""
        return (
            f"{self.run_name}, seed {self.seed}" if self.kind not in ("tokenizer", "supervised_teacher") else self.kind
        )

    @property
    def result(self) -> Path:
        """File with the metrics."""
        return self.folder / RESULT


@dataclass
class Plan:
    """The runs of a study, and which cell of a table comes from which run."""

    stages: list[list[Task]]
    """Runs; those of a stage need those of the stages before it."""
    runs: dict[tuple[str, str, bool], str]
    """Name of a run by table, row and whether it has the larger encoder."""
    reasons: dict[tuple[str, str], str]
    """Why a row is not run, by table and row."""


def plan(study: Study) -> Plan:
    """List the runs of a study.

    Raises:
        UserError: for settings that do not exist or cannot be combined.
    """
    scale = SCALES[study.scale]
    planned: dict[str, Task] = {}  # by name of the run, with seed 0
    result = Plan([], {}, {})
    for table in study.tables:
        for row in table.rows:
            reason = why_not(study, table, row)
            if reason:
                result.reasons[table.name, row.name] = reason
                continue
            for large in sorted({METRICS[metric].large for metric in _columns(table, row)}):
                task = _task(study, table, row, large=large)
                result.runs[table.name, row.name, large] = task.run_name
                before = planned.get(task.run_name, task)
                both = tuple(dict.fromkeys((*before.measures, *task.measures)))
                planned[task.run_name] = replace(before, measures=both)
    if any(task.keep in ("hardest", "easiest") for task in planned.values()):
        predictor = _task(study, NO_TABLE, HPM_ROW, large=False)
        planned.setdefault(predictor.run_name, replace(predictor, measures=()))
    first = [task for task in planned.values() if task.keep not in ("hardest", "easiest")]
    last = [task for task in planned.values() if task.keep in ("hardest", "easiest")]
    result.stages = [_prerequisites(study, scale, list(planned.values())), _seeds(study, first), _seeds(study, last)]
    result.stages = [stage for stage in result.stages if stage]
    return result


def why_not(study: Study, table: Table, row: StudyRow) -> str:
    """Return the reason why a row is not run, empty if it is."""
    frozen = {**table.base, **row.settings}.get("method.frozen")
    if row.cited:
        return "the paper's figure, cited; this method is not part of hardpatch"
    if frozen in WEIGHTS_ARGUMENTS and frozen not in study.weights:
        return f"it needs {WEIGHTS_ARGUMENTS[frozen]} FILE"
    if frozen == "hardpatch" and not SCALES[study.scale].stand_in:
        return f"scale {study.scale} has the networks themselves"
    if reason := SCALES[study.scale].not_run.get(f"{table.name}: {row.name}"):
        return reason
    if not any(measures_of(study, table, row, large=large) for large in (False, True)):
        missing = {METRICS[key].measure for key in _columns(table, row)}
        return "; ".join(sorted(not_measured(study, measure) for measure in missing))
    return ""


def measures_of(study: Study, table: Table, row: StudyRow, *, large: bool) -> tuple[Measure, ...]:
    """Return the measurements of a row's run, for its encoder or the larger one."""
    scale = SCALES[study.scale]
    columns = [METRICS[key].measure for key in _columns(table, row) if METRICS[key].large == large]
    extra = () if row.keep or row.scratch or large else scale.always
    return tuple(measure for measure in dict.fromkeys((*columns, *extra)) if not not_measured(study, measure))


def not_measured(study: Study, measure: Measure) -> str:
    """Return the reason why a measurement is not made, empty if it is."""
    if study.measures is not None:
        chosen = measure in study.measures or measure in ("supervised", "speedup")
        if not chosen:
            return f"{measure} is not in --measures"
    elif measure in SCALES[study.scale].optional and measure not in DATA_ARGUMENTS:
        return f"scale {study.scale} leaves out {measure}; it needs --measures {measure}"
    data = {"detect": study.detect, "segment": study.segment, "segment_160k": study.segment}
    if measure in data and data[measure] is None:
        return f"{measure} needs {', '.join(f'--{name}' for name in DATA_ARGUMENTS[measure])}"
    return ""


def metric_title(study: Study, metric: Metric) -> str:
    """Return the title of a column, with the name of its encoder where a scale has two."""
    scale = SCALES[study.scale]
    return metric.title.replace("larger", scale.encoders[1])


def _columns(table: Table, row: StudyRow) -> tuple[str, ...]:
    """Return the columns in which a row has a figure: a method of Table 6 that has none with ViT-L is not run so."""
    return tuple(key for key in table.metrics if not row.paper or key in row.paper or not METRICS[key].large)


def _task(study: Study, table: Table, row: StudyRow, *, large: bool) -> Task:
    """Return the run of a row with seed 0."""
    settings = {**table.base, **row.settings}
    files: dict[str, Any] = {}
    if (frozen := settings.get("method.frozen")) is not None:
        own = str(study.supervised_teacher)
        files["method.frozen_weights"] = own if frozen == "hardpatch" else study.weights[frozen]
    if settings.get("method.host") == "beit":
        files["method.tokenizer"] = study.tokenizer or str(study.trained_tokenizer)
    run = _configure(study, table, row, files, large=large)
    host = StudyRow("", settings={"method.host": run.method.host}, length=row.length)
    tokenizer = {name: file for name, file in files.items() if name == "method.tokenizer"}
    reference = _configure(study, NO_TABLE, host, tokenizer, large=large)
    name = run_name(row, run, reference, large=large)
    kind: Kind = "scratch" if row.scratch else "half" if row.keep else "pretrain"
    measures = measures_of(study, table, row, large=large)
    return Task(kind, name, 0, run, study.out / "runs" / name / "seed_0", measures, row.keep, large)


def _seeds(study: Study, tasks: list[Task]) -> list[Task]:
    """Return the tasks with each seed, one seed after another."""
    return [
        replace(
            task,
            seed=seed,
            run=replace(task.run, seed=task.run.seed + seed),
            folder=task.folder.with_name(f"seed_{seed}"),
            # a ratio of times does not depend on the seed
            measures=tuple(measure for measure in task.measures if measure != "speedup" or seed == 0),
        )
        for seed in range(study.seeds)
        for task in tasks
    ]


def _prerequisites(study: Study, scale: Scale, tasks: list[Task]) -> list[Task]:
    """Return the trainings that runs of all seeds depend on."""
    needed = []
    if study.tokenizer is None:
        beit = next((task.run for task in tasks if task.run.method.host == "beit"), None)
        if beit is not None:
            needed.append(Task("tokenizer", "tokenizer", 0, beit, study.trained_tokenizer))
    if any(task.run.method.frozen == "hardpatch" for task in tasks):
        plain = configure(NO_TABLE, HPM_ROW, scale, data=study.data, settings=study.settings)
        needed.append(Task("supervised_teacher", "supervised_teacher", 0, plain, study.supervised_teacher.parent))
    return needed


def _configure(study: Study, table: Table, row: StudyRow, files: Mapping[str, Any], *, large: bool) -> RunConfig:
    scale = SCALES[study.scale]
    run = configure(table, row, scale, large=large, data=study.data, settings=study.settings, overrides=files)
    if study.jobs > 1 and run.data.workers == "auto":  # the runs share the cores
        return replace(run, data=replace(run.data, workers=max(1, resolve_workers("auto") // study.jobs)))
    return run
