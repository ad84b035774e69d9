"""Everything that can be wrong with a study, checked before its first step."""

import json
from collections.abc import Sequence

from hardpatch.data.sources import open_source
from hardpatch.errors import UserError
from hardpatch.measure.features import align_labels
from hardpatch.pretrain.folder import check_resume
from hardpatch.study.plan import Study, Task


def check(study: Study, stages: Sequence[Sequence[Task]]) -> None:
    """Check the images, their labels, and the runs that the folder already holds.

    Raises:
        UserError: if images cannot be read or have no labels, or if the folder holds runs with other settings.
    """
    sources = []
    for argument, path in (("--data", study.data), ("--train_labeled", study.train), ("--val", study.val)):
        try:
            sources.append(open_source(path))
        except UserError as error:
            raise UserError(f"{argument}: {error}") from None
    align_labels(*sources[1:])
    _check_folder(study)
    for task in (task for stage in stages for task in stage):
        if (task.folder / "config.yaml").is_file():
            try:
                check_resume(task.folder, task.run)
            except UserError as error:
                raise UserError(f"--out: {str(error).removeprefix('--resume: ')}") from None


def _check_folder(study: Study) -> None:
    """Refuse a folder of another study."""
    if study.out.exists() and not study.out.is_dir():
        raise UserError(f"--out: expected a folder, {study.out} is a file")
    path = study.out / "table.json"
    if not path.is_file():
        return
    previous = json.loads(path.read_text(encoding="utf-8"))
    current = {"table": study.table.name, "scale": study.scale, "train": study.train, "val": study.val}
    for name, value in current.items():
        if previous.get(name) != value:
            raise UserError(
                f"--out: the study in {study.out} has {name} {previous.get(name)}, now {value}; choose another --out"
            )
