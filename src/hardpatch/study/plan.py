"""Plan of a study: its runs in the order of their dependencies."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hardpatch.data.workers import resolve_workers
from hardpatch.pretrain.sections import RunConfig
from hardpatch.study.rows import StudyRow, Table
from hardpatch.study.scales import SCALES, configure
from hardpatch.train.settings import changed

if TYPE_CHECKING:
    from hardpatch.finetune.settings import FinetuneSettings
    from hardpatch.pretrain.tokenizer_settings import TokenizerSettings

RESULT = "result.json"
"""File in the folder of a finished run."""

WEIGHTS_ARGUMENTS = {"dino": "--dino_weights", "clip": "--clip_weights"}
"""The argument that names the weights of each frozen network; a study downloads nothing."""

PREDICTOR = StudyRow(name="predictor", settings={"method.predicting_loss": "relative"})
"""The pre-training run whose loss predictor ranks the patches of supervised rows: HPM with the scale's settings."""

TOKENIZER = StudyRow(name="tokenizer")
"""The training of BEiT's visual tokens, which rows with that host need unless --tokenizer names one."""


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
    """Labeled images for the k-NN vote, the linear probe and fine-tuning."""
    val: str
    """Labeled images to evaluate on."""
    seeds: int = 1
    jobs: int = 1
    """Number of runs at a time, each in its own process."""
    settings: tuple[str, ...] = ()
    """The user's settings for all rows, as command-line arguments."""
    weights: Mapping[str, str] | None = None
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


@dataclass(frozen=True)
class Task:
    """One run: a row with one seed, or a run that rows depend on."""

    row: StudyRow
    seed: int
    run: RunConfig
    folder: Path

    @property
    def name(self) -> str:
        """Name on the terminal."""
        return f"{self.row.name}, seed {self.seed}" if self.row != TOKENIZER else self.row.name

    @property
    def result(self) -> Path:
        """File with the metrics, written last."""
        return self.folder / RESULT

    @property
    def done(self) -> bool:
        """True once the run is trained and measured."""
        return self.result.is_file()


def plan(study: Study) -> tuple[list[list[Task]], dict[str, str]]:
    """List the runs of a study.

    Returns:
        The runs in stages, each of which needs those before it; and by row key the reason why a row cannot be run.
    """
    table = study.table
    reasons: dict[str, str] = {}
    runs: list[tuple[StudyRow, RunConfig]] = []
    for row in table.rows:
        settings = {**table.base, **row.settings}
        files: dict[str, Any] = {}
        if "method.frozen" in settings:
            weights = (study.weights or {}).get(settings["method.frozen"])
            if weights is None:
                reasons[row.key] = f"it needs {WEIGHTS_ARGUMENTS[settings['method.frozen']]} FILE"
                continue
            files["method.frozen_weights"] = weights
        if settings.get("method.host") == "beit":
            files["method.tokenizer"] = study.tokenizer or str(study.trained_tokenizer)
        runs.append((row, _configure(study, table, row, files)))
    prerequisites = []
    if any(row.keep in ("hardest", "easiest") for row in table.rows):
        prerequisites.append((PREDICTOR, _configure(study, replace(table, base={}), PREDICTOR, {})))
    stages = [
        [
            Task(row, seed, replace(run, seed=run.seed + seed), study.out / row.key / f"seed_{seed}")
            for seed in range(study.seeds)
            for row, run in stage
        ]
        for stage in (prerequisites, runs)
    ]
    beit = next((run for _, run in runs if run.method.host == "beit"), None)
    if beit is not None and study.tokenizer is None:  # one for all seeds
        stages[0].append(Task(TOKENIZER, 0, beit, study.out / TOKENIZER.key))
    return [stage for stage in stages if stage], reasons


def tokenizer_settings(study: Study, task: Task) -> "TokenizerSettings":
    """Return the settings of the training of BEiT's visual tokens."""
    from hardpatch.pretrain.tokenizer_settings import PRESETS

    run, workers = task.run, task.run.data.workers
    machine = {"device": run.train.device, "workers": workers if isinstance(workers, int) else None}
    return changed(PRESETS["small"], {**SCALES[study.scale].tokenizer, "seed": run.seed, **machine})


def finetune_settings(study: Study, run: RunConfig) -> "FinetuneSettings":
    """Return the settings that fine-tune the encoder of a pre-training run."""
    from hardpatch.finetune.settings import PRESETS

    values = dict(SCALES[study.scale].finetune)
    preset, workers = PRESETS[values.pop("preset")], run.data.workers
    machine = {"device": run.train.device, "workers": workers if isinstance(workers, int) else None}
    return changed(preset, {"seed": run.seed, **machine, **values})


def _configure(study: Study, table: Table, row: StudyRow, overrides: Mapping[str, Any]) -> RunConfig:
    scale = SCALES[study.scale]
    run = configure(table, row, scale, data=study.data, settings=study.settings, overrides=overrides)
    if study.jobs > 1 and run.data.workers == "auto":  # the runs share the cores
        return replace(run, data=replace(run.data, workers=max(1, resolve_workers("auto") // study.jobs)))
    return run
