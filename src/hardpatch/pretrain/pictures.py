"""Pictures of a finished run: its curves, and the difficulty of some images."""

import logging
from pathlib import Path

from hardpatch.curves import training_curves
from hardpatch.data.memory import InMemorySource
from hardpatch.data.sources import Subset
from hardpatch.errors import UserError
from hardpatch.measure.score import score
from hardpatch.methods.targets import HostTargets
from hardpatch.pretrain.job import PretrainJob
from hardpatch.train.metrics import read_metrics

log = logging.getLogger("hardpatch")

PICTURED = 8
"""Images of the training set whose difficulty is shown."""


def write_pictures(job: PretrainJob) -> list[Path]:
    """Draw the curves of a run and, if it has a loss predictor, the difficulty of some of its images.

    Returns:
        The pictures: ``pictures/curves.png`` and ``pictures/difficulty/contact_sheet.png``.
    """
    folder, learner = job.folder, job.learner
    pictures = []
    metrics = read_metrics(folder / "metrics.jsonl")
    if metrics:
        pictures.append(training_curves(metrics, folder / "pictures" / "curves.png"))
    student = learner.model.eval()
    if not student.has_predictor:
        return pictures
    teacher = student if learner.teacher is None else learner.teacher.network
    source = job.source.source if isinstance(job.source, InMemorySource) else job.source
    chosen = sorted({round(k * (len(source) - 1) / (PICTURED - 1)) for k in range(PICTURED)})
    target = HostTargets(teacher.host) if student.host.uses_teacher else learner.mining.target
    try:
        summary = score(
            student,
            teacher,
            Subset(source, chosen),
            out=folder / "pictures" / "difficulty",
            target=target,
            mask_ratio=job.run.method.mask_ratio,
            predict="masked" if job.run.fast.remember else "whole",
            pictures=PICTURED,
            device=learner.fabric.device,
        )
    except UserError as error:  # too few patches for a picture must not fail a finished run
        log.warning("no pictures of the difficulty: %s", error)
    else:
        pictures += [summary.contact_sheet] if summary.contact_sheet is not None else []
    return pictures
