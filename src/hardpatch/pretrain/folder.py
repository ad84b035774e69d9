"""Folder of a pre-training run: its configuration, the files written before the first step, and resuming."""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from hardpatch.configuration import config
from hardpatch.configuration.sections import RunConfig
from hardpatch.configuration.upgrade import upgrade
from hardpatch.errors import UserError
from hardpatch.paths import typed, user_path
from hardpatch.pretrain import recipes
from hardpatch.pretrain.schedule import schedule, scheduled_lr
from hardpatch.ranges import check_text
from hardpatch.train import checkpoint
from hardpatch.train import resume as resuming
from hardpatch.train.run_folder import check_new, read_values, write_files

__all__ = ["check_new", "check_resume", "configure", "extension_line", "read_config", "refuse_edited", "write"]

log = logging.getLogger("hardpatch")

TAKEN_OVER = (
    *("model.width", "model.depth", "model.heads", "model.patch_size", "model.positions", "model.layer_scale"),
    *("model.decoder_width", "model.decoder_depth", "model.decoder_heads"),
    *("init.frozen", "init.heads", "init.decoder_heads"),
    *("fast.decoder", "fast.shared_blocks", "fast.predictor_depth"),
    *("ibot.outputs", "ibot.head_hidden", "ibot.head_bottleneck"),
)
"""Settings that may come from the weights that a run starts from, beside those that no user sets."""

FREE_TO_CHANGE = (
    *("train.", "knn.", "verdict.checks", "verdict.images"),
    *("data.workers", "data.max_bad_fraction", "data.label_column", "optim.accumulation_steps"),
)
"""Settings that may change when a run is resumed, since they do not affect what is learned. So may the path of the
images, as long as the images are the same, which the job checks."""

README = """# A hardpatch run

Made by `{command}`.

| file | content |
|---|---|
| `config.yaml` | every setting; `hardpatch pretrain --config` reads it |
| `environment.json` | versions and hardware |
| `plan.txt` | images seen and expected time, and what each setting rests on if no recipe was named |
| `log.txt` | all that was said, with the time |
| `metrics.jsonl` | losses, learning rate, alpha, vital signs of the miner and checks, one JSON object per line |
| `tensorboard/` | the same for `tensorboard --logdir` |
| `checkpoints/` | `step_*/model.safetensors`: weights of student and teacher; `training.safetensors`: optimizer |
| `best/` | of a run with --init: `model.safetensors` of the best check, see the verdict |
| `dumps/` | steps that were NaN or infinite, if there are any, for `hardpatch replay` |
| `undecodable.txt` | images that cannot be decoded, if there are any; they were skipped |
| `neighbors.safetensors` | nearest neighbors of the images that the checks look at, for the next check |
| `pictures/` | curves, reconstruction and difficulty of images; `step_*.png` as they were during the training |
| `result.json` | results of the finished run, and the verdict on it |
| `report.html` | all of this as a page, without network; `hardpatch report` makes it anew, or of several runs |

Commands for this run; the last one resumes it if it was interrupted:

    hardpatch info {folder}
    hardpatch knn {folder} --train LABELED_IMAGES --val LABELED_IMAGES
    hardpatch linear {folder} --train LABELED_IMAGES --val LABELED_IMAGES
    hardpatch score {folder} IMAGES --out PICTURES
    hardpatch pretrain --resume --out {folder}

In Python, `hardpatch.load("{folder}")` gives the model.
"""


def configure(
    recipe: str | None,
    file: str | Path | None,
    data: str | Sequence[str] | None,
    folder: Path | None,
    changes: Sequence[str],
    *,
    resume: bool = False,
) -> tuple[RunConfig, Path]:
    """Return the configuration of a run and its folder.

    Args:
        recipe: named run to start from.
        file: YAML file of settings, in place of a recipe.
        data: images to train on.
        folder: of the run; None is ``runs/NAME``.
        changes: settings in which it differs, as on the command line.
        resume: take the settings from the folder; a recipe or a file has to agree with them.

    Raises:
        UserError: names what is missing or does not go together.
    """
    if file is not None:
        file = user_path(file, "--config")
    check_text("--recipe", recipe)
    if recipe and file:
        raise UserError("--recipe, --config: expected one of the two, got both; a file may name a recipe as its base")
    if data is not None and "data.path" in config.names_in(changes):
        raise UserError("--data, --data.path: expected one of the two, got both; they are the same setting")
    no_data = data is None and "data.path" not in config.names_in(changes)
    name = recipe or (Path(file).stem if file else "demo" if no_data else "run")
    folder = folder or Path("runs") / name
    if recipe:
        values = recipes.read(recipe)
    elif file:
        values = recipes.read_file(file)
    elif resume:
        values = config.to_dict(read_config(folder))
    else:
        values = recipes.read("demo") if no_data else {}
    run = config.build(_with_data(values, data), changes)
    if run.init.weights is not None and not resume:
        run = _continued(run, _with_data(values, data), changes)
    if resume:
        old, names = read_config(folder), config.names_in(changes)
        if recipe or file:  # those only have to agree; what a resumed run may change stays as it was
            check_resume(folder, replace(_as_before(run, old), extensions=old.extensions), names)
            run = config.build(_with_data(config.to_dict(old), data), changes)
        if {"epochs", "steps"} & names and run.train.extend != "no":
            run = _extended(folder, old, run)
    if recipe and run.data.path is None:
        raise UserError(f"--data: recipe {recipe} needs your images: --data PATH (demo:train is the embedded set)")
    return run, folder


def _continued(run: RunConfig, values: Mapping[str, Any], changes: Sequence[str]) -> RunConfig:
    """Return a run with the shapes of the weights that it starts from, and say what they replace."""
    from hardpatch.pretrain.adopt import adopt  # which imports torch

    adopted = adopt(run, config.names_in(changes))
    continued = config.build(config.merged(values, adopted), changes)
    changed = config.differences(run, continued)
    said = ", ".join(f"{name} {new}" for name, (_, new) in changed.items() if not name.startswith("init."))
    if said:
        log.info("--init: settings taken over from the weights: %s", said)
    return continued


def _as_before(run: RunConfig, before: RunConfig) -> RunConfig:
    """Return a run with what it took over ``before`` from the same weights."""
    if run.init.weights is None or run.init.weights != before.init.weights:
        return run
    found = {name: value for name, (_, value) in config.differences(run, before).items() if name in TAKEN_OVER}
    encoder = {"init.encoder": before.init.encoder, "init.mean": before.init.mean, "init.std": before.init.std}
    return config.build(config.merged(config.to_dict(run), found | encoder))


def _with_data(values: dict[str, Any], data: str | Sequence[str] | None) -> dict[str, Any]:
    """Return settings with the path of the images, which is no YAML: a folder may be called null or [a]."""
    if data is None:
        return values
    paths = typed(data, "--data") if isinstance(data, str) else [typed(path, "--data") for path in data]
    return {**values, "data": {**values.get("data", {}), "path": paths}}


def read_config(folder: Path) -> RunConfig:
    """Read the configuration that a run folder was made with.

    Raises:
        UserError: if there is none.
    """
    return config.build(upgrade(read_values(folder), str(folder / "config.yaml")))


def _extended(folder: Path, old: RunConfig, run: RunConfig) -> RunConfig:
    """Return a run to resume that may have another length than before, with the setting ``extensions`` for that."""
    start = resuming.start_of(folder)
    if not start.step:  # it begins anew
        return replace(run, extensions=())
    planned, total = old.total_steps(start.images), run.total_steps(start.images)
    plain = replace(run, extensions=())

    def values(step: int, total: int) -> tuple[float, ...]:
        found = schedule(plain, step, total)
        return (found.lr, *(found if run.method.host == "ibot" else found[2:]))  # its temperature and head follow, too

    extensions = resuming.extended(start, old.extensions, planned, total, run.train.extend, values)
    return replace(run, extensions=extensions)


def extension_line(run: RunConfig, images: int) -> str | None:
    """Return a line about the last extension of a run, None if there is none."""
    return resuming.line_of(
        run.total_steps(images), run.extensions, lambda step, total: scheduled_lr(run, step / total)
    )


def check_resume(folder: Path, run: RunConfig, names: Collection[str] = ()) -> None:
    """Refuse to resume a run with other settings than it began with.

    Args:
        folder: of the run.
        run: its settings now.
        names: settings that the call names; length and peak learning rate may change then.

    Raises:
        UserError: names every setting that differs, with both values.
    """
    newest = checkpoint.newest_whole(folder, (checkpoint.WEIGHTS,))
    metadata = {} if newest is None else checkpoint.read_metadata(newest / checkpoint.WEIGHTS) or {}
    free = (*FREE_TO_CHANGE, *(["data.path"] if metadata.get("content") else []))
    allowed = resuming.named(names, run.train.extend)
    changed = {
        name: values
        for name, values in config.differences(read_config(folder), run).items()
        if not name.startswith(free) and name not in allowed
    }
    resuming.refuse_changes(folder, changed)


def refuse_edited(folder: Path, saved: Path, metadata: Mapping[str, Any], run: RunConfig) -> None:
    """Refuse to resume from a checkpoint of other settings: ``config.yaml`` was changed, or the checkpoint is foreign.

    Args:
        folder: of the run.
        saved: folder of the checkpoint.
        metadata: of its weights.
        run: settings of the run.

    Raises:
        UserError: names every setting that differs, with both values.
    """
    was = config.build(upgrade(metadata["config"], str(saved)))
    free = (*FREE_TO_CHANGE, "data.path")  # the job compares the images themselves
    allowed = resuming.explained(vars(was), vars(run), checkpoint.step_of(saved))
    differing = config.differences(was, run).items()
    changed = {name: pair for name, pair in differing if not name.startswith(free) and name not in allowed}
    resuming.refuse_changes(folder, changed)


def write(folder: Path, run: RunConfig, arguments: Sequence[str]) -> None:
    """Write ``config.yaml``, ``environment.json`` and a README, each completely or not at all.

    Raises:
        UserError: if the folder cannot be created.
    """
    write_files(folder, config.to_yaml(run), arguments, README, _base(run, arguments))


def _base(run: RunConfig, arguments: Sequence[str]) -> dict[str, Any]:
    """Return what a run can be compared with: the recipe that its command names, the embedded set's, or the defaults.

    Beside the name there are the values of the settings in which the run differs.
    """
    named = [value for word, value in pairwise(arguments) if word == "--recipe"]
    named += [word.removeprefix("--recipe=") for word in arguments if word.startswith("--recipe=")]
    name = named[-1] if named else "demo" if run.data.path == "demo:train" else None
    known = name in recipes.names()
    base = config.build(recipes.read(str(name))) if known else RunConfig()
    before = {setting: old for setting, (old, _) in config.differences(base, run).items()}
    return {"name": f"recipe {name}" if known else "the defaults", "settings": before}
