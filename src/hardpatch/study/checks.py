"""Everything that can be wrong with a study, checked before its first step."""

import json
from pathlib import Path

from hardpatch.data.sources import open_source
from hardpatch.errors import UserError
from hardpatch.measure.features import align_labels
from hardpatch.pretrain.folder import check_resume
from hardpatch.study.plan import DETECT_ARGUMENTS, SEGMENT_ARGUMENTS, Plan, Study

FACTS = "study.json"
"""File in the study's folder with what all of its runs have in common."""


def facts(study: Study) -> str:
    """Return the content of :data:`FACTS`."""
    return json.dumps({"scale": study.scale, "train": study.train, "val": study.val}, indent=2) + "\n"


def check(study: Study, plan: Plan) -> None:
    """Check the images, their labels, and the runs that the folder already holds.

    Raises:
        UserError: if images cannot be read or have no labels, or if the folder holds runs with other settings.
    """
    sources = []
    for argument, path in (("--data", study.data), ("--train_labeled", study.train), ("--val", study.val)):
        try:
            sources.append(open_source(path, study.columns, role="val" if argument == "--val" else "train"))
        except UserError as error:
            raise UserError(f"{argument}: {error}") from None
    align_labels(*sources[1:])
    _check_downstream(study)
    _check_folder(study)
    for task in (task for stage in plan.stages for task in stage if task.kind == "pretrain"):
        if (task.folder / "config.yaml").is_file():
            try:
                check_resume(task.folder, task.run)
            except UserError as error:
                raise UserError(f"--out: {str(error).removeprefix('--resume: ')}") from None


def _check_downstream(study: Study) -> None:
    """Refuse folders and files of downstream tasks that do not exist."""
    named = {
        **dict(zip(DETECT_ARGUMENTS, study.detect or (), strict=False)),
        **dict(zip(SEGMENT_ARGUMENTS, study.segment or (), strict=False)),
    }
    for argument, path in named.items():
        if not Path(path).exists():
            raise UserError(f"--{argument}: expected a file or folder, {path} does not exist")


def _check_folder(study: Study) -> None:
    """Refuse a folder of another study."""
    if study.out.exists() and not study.out.is_dir():
        raise UserError(f"--out: expected a folder, {study.out} is a file")
    path = study.out / FACTS
    if not path.is_file():
        if (study.out / "table.json").is_file():
            raise UserError(
                f"--out: {study.out} has a study of an earlier version, whose tables were numbered differently; "
                "choose another --out"
            )
        return
    previous = json.loads(path.read_text(encoding="utf-8"))
    for name, value in json.loads(facts(study)).items():
        if previous.get(name) != value:
            raise UserError(
                f"--out: the study in {study.out} has {name} {previous.get(name)}, now {value}; choose another --out"
            )
