"""Pictures of a run: its curves, and reconstruction and difficulty of some of its images."""

import logging
import shutil
from pathlib import Path

import torch

from hardpatch.curves import training_curves
from hardpatch.data.memory import InMemorySource
from hardpatch.data.order import evenly_spread
from hardpatch.data.sources import Subset
from hardpatch.errors import UserError
from hardpatch.measure.score import score
from hardpatch.methods.targets import HostTargets
from hardpatch.pretrain.facts import target_words
from hardpatch.pretrain.job import PretrainJob
from hardpatch.train.metrics import read_metrics

log = logging.getLogger("hardpatch")


def write_pictures(job: PretrainJob, *, singles: bool = True) -> list[Path]:
    """Draw the curves of a run, and of some images reconstruction, true loss and, with a predictor, difficulty.

    Args:
        job: the run, whose ``train.pictures`` is the number of images.
        singles: also write a picture of each single image.

    Returns:
        The pictures: ``pictures/curves.png`` and ``pictures/difficulty/contact_sheet.png``.
    """
    folder, learner, shown = job.folder, job.learner, job.run.train.pictures
    pictures = []
    metrics = read_metrics(folder / "metrics.jsonl")
    if metrics:
        pictures.append(training_curves(metrics, folder / "pictures" / "curves.png"))
    student = learner.whole_model.current
    averaged = None if learner.whole_teacher is None else learner.whole_teacher.current
    training = student.training
    teacher = student if averaged is None else averaged.network
    source = job.source.source if isinstance(job.source, InMemorySource) else job.source
    target = HostTargets(teacher.host) if student.host.uses_teacher else learner.mining.target
    try:
        with torch.random.fork_rng(), torch.compiler.set_stance("force_eager"):
            summary = score(
                student.eval(),
                teacher,
                Subset(source, evenly_spread(len(source), shown)),
                out=folder / "pictures" / "difficulty",
                target=target,
                mask_ratio=job.run.method.mask_ratio,
                predict="masked" if job.run.fast.remember else "whole",
                pictures=shown,
                singles=singles,
                device=learner.fabric.device,
            )
    except UserError as error:  # too few patches for a picture must not fail a finished run
        log.warning("no pictures of the difficulty: %s", error)
    else:
        pictures += [summary.contact_sheet] if summary.contact_sheet is not None else []
        if singles and not getattr(student.host, "reconstructs_pixels", False):
            log.info("pictures: no reconstruction to show, as %s are predicted, not pixels", target_words(job.run))
    student.train(training)
    return pictures


def write_check_pictures(job: PretrainJob) -> None:
    """Draw the pictures as they are at a check, and keep a copy of the sheet as ``pictures/step_XXXXXXXX.png``."""
    try:
        for path in write_pictures(job, singles=False):
            if path.parent.name == "difficulty":
                shutil.copyfile(path, job.folder / "pictures" / f"step_{job.step:08d}.png")
    except OSError as error:  # a full disk ends the training where it has to write
        log.warning("no pictures of this check: %s", error)
