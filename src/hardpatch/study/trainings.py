"""The trainings of a study, each as its verb does it, in a folder of the run; all resume."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hardpatch.errors import UserError
from hardpatch.study.plan import RESULT, Study, Task
from hardpatch.study.scale_settings import Settings
from hardpatch.study.scales import SCALES
from hardpatch.train.progress import Progress
from hardpatch.train.settings import changed, to_dict


class Stopped(Exception):  # noqa: N818 - a request, not an error
    """A signal asked the study to stop."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def pretraining(study: Study, task: Task, progress: Progress) -> None:
    """Pre-train as ``hardpatch pretrain`` does, without its pictures."""
    from hardpatch.pretrain.run import train

    result = train(
        task.run,
        task.folder,
        resume=_started(task.folder),
        progress=progress,
        arguments=["study", *study.arguments],
        pictures=False,
    )
    if not result.finished:
        raise Stopped(result.signal)


def tokenizer(study: Study, task: Task, progress: Progress) -> None:
    """Train BEiT's visual tokens as ``hardpatch tokenizer`` does."""
    from hardpatch.pretrain.tokenizer_run import train_tokenizer

    settings, columns = tokenizer_settings(study, task), {"image_column": study.columns.image}
    _resume(train_tokenizer, study, study.trained_tokenizer, progress, settings, study.data, **columns)


def classifier(study: Study, task: Task, progress: Progress, *, random: bool = False) -> dict[str, Any]:
    """Fine-tune as ``hardpatch finetune`` does, or train from random weights; return its result.

    Args:
        study: the study, with the labeled images.
        task: the run.
        progress: shows steps and metrics.
        random: start from random weights, with the scale's settings for that.
    """
    from hardpatch.finetune.run import finetune

    settings = classifier_settings(study, task, random=random)
    inputs = (task.run if random else str(task.folder), study.train, study.val)
    result = _resume(finetune, study, task.folder / "finetune", progress, settings, *inputs, **_columns(study))
    return {"top1": result.top1, "top5": result.top5, "best_top1": result.best_top1}


def linear_probe(study: Study, task: Task, progress: Progress) -> dict[str, Any]:
    """Train the linear probe of Table S3 as ``hardpatch linear --protocol paper`` does; return its result."""
    from hardpatch.finetune.run import train_linear_probe
    from hardpatch.finetune.settings import PROBES

    settings, inputs = _settings(PROBES, {"preset": "paper"}, task), (str(task.folder), study.train, study.val)
    folder = task.folder / "linear"
    result = _resume(train_linear_probe, study, folder, progress, settings, *inputs, **_columns(study))
    return {"top1": result.top1, "top5": result.top5}


def _columns(study: Study) -> dict[str, str | None]:
    return {"image_column": study.columns.image, "label_column": study.columns.label}


def detection(study: Study, task: Task, progress: Progress) -> dict[str, Any]:
    """Train Mask R-CNN as ``hardpatch detect`` does; return its result."""
    from hardpatch.detect.run import detect

    assert study.detect is not None
    settings, inputs = detect_settings(study, task), (str(task.folder), *study.detect)
    return _resume(detect, study, task.folder / "detect", progress, settings, *inputs).result


def segmentation(study: Study, task: Task, progress: Progress, *, twice_as_long: bool = False) -> dict[str, Any]:
    """Train UperNet as ``hardpatch segment`` does, twice as long for Table 7; return its result."""
    from hardpatch.segment.run import segment

    assert study.segment is not None
    folder = task.folder / ("segment_160k" if twice_as_long else "segment")
    settings, inputs = segment_settings(study, task, twice_as_long=twice_as_long), (str(task.folder), *study.segment)
    labels = {"classes": study.segment_classes, "reduce_zero_label": study.reduce_zero_label or None}
    return _resume(segment, study, folder, progress, settings, *inputs, **labels).result


def _resume(
    verb: Callable[..., Any], study: Study, folder: Path, progress: Progress, settings: Any, *inputs: Any, **more: Any
) -> Any:
    """Call a verb with its inputs and settings, to its end, from what its folder has; return its result.

    Raises:
        Stopped: if a signal stopped it; it can be resumed.
    """
    values = {**more, **to_dict(settings), "extend": "no"}  # a study of another length is another study
    arguments = ["study", *study.arguments]
    result = verb(*inputs, folder, resume=_started(folder), progress=progress, arguments=arguments, **values)
    if not result.finished:
        raise Stopped(result.signal)
    return result


def half(study: Study, task: Task, progress: Progress) -> dict[str, float]:
    """Train the supervised ViT of Table D; return its accuracies by key of the metrics."""
    from hardpatch.interchange.load import load
    from hardpatch.study.table_d import train_supervised

    assert task.keep is not None
    predictor = None
    if task.keep in ("hardest", "easiest"):
        pretrained = study.out / "runs" / "hpm" / f"seed_{task.seed}"
        if not (pretrained / RESULT).is_file():
            raise UserError(f"the pre-training run that ranks the patches is not done: {pretrained}")
        predictor = load(pretrained, "teacher")
    settings = classifier_settings(study, task, random=True)
    folder = task.folder / "supervised"
    result = train_supervised(task.run, settings, folder, study.train, study.val, task.keep, predictor, progress)
    if result.signal:
        raise Stopped(result.signal)
    return result.accuracies


def tokenizer_settings(study: Study, task: Task) -> Any:
    """Return the settings of the training of BEiT's visual tokens."""
    from hardpatch.pretrain.tokenizer_settings import PRESETS

    return _settings(PRESETS, {"preset": "small", **SCALES[study.scale].tokenizer}, task)


def classifier_settings(study: Study, task: Task, *, random: bool = False) -> Any:
    """Return the settings that train a classifier; see :func:`classifier`."""
    from hardpatch.finetune.settings import PRESETS

    scale = SCALES[study.scale]
    if random:
        return _settings(PRESETS, {**scale.supervised, "weights": "random"}, task)
    return _settings(PRESETS, {**scale.finetune, **(scale.finetune_large if task.large else {})}, task)


def detect_settings(study: Study, task: Task) -> Any:
    """Return the settings that train Mask R-CNN."""
    from hardpatch.detect.settings import PRESETS

    return _settings(PRESETS, SCALES[study.scale].detect, task)


def segment_settings(study: Study, task: Task, *, twice_as_long: bool) -> Any:
    """Return the settings that train UperNet: the scale's steps (Table 5), or twice as many (Table 7)."""
    from hardpatch.segment.settings import PRESETS

    settings = _settings(PRESETS, SCALES[study.scale].segment, task)
    if not twice_as_long:
        return settings
    return changed(settings, {"steps": 2 * settings.steps} if settings.steps else {"epochs": 2 * settings.epochs})


def _settings(presets: Any, values: Settings, task: Task) -> Any:
    """Return a preset with a scale's changes, on the device and with the seed of the run."""
    values = dict(values)
    preset, workers = presets[values.pop("preset")], task.run.data.workers
    machine = {"device": task.run.train.device, "workers": workers if isinstance(workers, int) else None}
    return changed(preset, {"seed": task.run.seed, **machine, **values})


def _started(folder: Path) -> bool:
    """Return True if a training has written its settings there, from which it resumes."""
    return (folder / "config.yaml").is_file()
