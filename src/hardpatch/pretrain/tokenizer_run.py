"""Train a tokenizer for host ``beit``, from images to a run folder that ``method.tokenizer`` takes."""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from hardpatch import __version__
from hardpatch.curves import training_curves
from hardpatch.data.augment import EvalTransform
from hardpatch.data.columns import Columns
from hardpatch.data.left_out import counts
from hardpatch.data.loader import eval_batches
from hardpatch.data.reading import RGB
from hardpatch.data.sources import OpenedSource, Source, Subset, open_source
from hardpatch.data.summary import summarize
from hardpatch.data.survey import adapted
from hardpatch.errors import UserError
from hardpatch.figures import enlarge
from hardpatch.files import atomic_path, optional_file
from hardpatch.models.discrete_vae import DiscreteVAE
from hardpatch.models.tokenizer import FILE, KIND, METADATA
from hardpatch.pickles import save_tensors
from hardpatch.pretrain.tokenizer import (
    Quality,
    TokenizerJob,
    evenly_spread,
    temperature,
    tokenizer_learning_rate,
)
from hardpatch.pretrain.tokenizer_settings import PRESETS, TokenizerSettings, check
from hardpatch.processes import is_first, on_first
from hardpatch.train.device import start_fabric_of
from hardpatch.train.folder_run import FolderRun, open_run
from hardpatch.train.launch import launch_of
from hardpatch.train.log import log_to
from hardpatch.train.loop import fit
from hardpatch.train.metrics import logged_pictures, read_metrics
from hardpatch.train.progress import Progress, Silent
from hardpatch.train.result import write_result
from hardpatch.train.run_folder import claimed, resume_point
from hardpatch.train.settings import to_dict

log = logging.getLogger("hardpatch")

PICTURED = 8
README = """# A tokenizer trained with hardpatch

Made by `{command}`.

| file | content |
|---|---|
| `tokenizer.safetensors` | the tokenizer; `--method.tokenizer {folder}` uses it with host `beit` |
| `config.yaml` | every setting |
| `result.json` | error of the reconstruction, use of the words |
| `metrics.jsonl`, `tensorboard/` | losses, learning rate and the use of the words during training |
| `pictures/` | curves; `reconstructions.png`: images above their reconstructions from tokens |
| `checkpoints/` | to resume from |

If it was interrupted, resume with

    hardpatch tokenizer --resume --out {folder}
"""


@dataclass(frozen=True)
class TokenizerResult:
    """Result of :func:`train_tokenizer`."""

    folder: Path
    step: int
    """optimizer steps done"""
    total: int
    quality: Quality | None = None
    """None if the run was interrupted"""
    pictures: tuple[Path, ...] = ()
    signal: int = 0
    """signal that interrupted the run, 0 for none"""
    result: dict[str, Any] | None = None
    """content of ``result.json``, None if the run was interrupted"""

    @property
    def finished(self) -> bool:
        """True unless the run was interrupted."""
        return self.step == self.total


def train_tokenizer(
    data: str | Sequence[str] | None = None,
    out: str | Path | None = None,
    *,
    image_column: str | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    arguments: Sequence[str] = (),
    **settings: Any,
) -> TokenizerResult:
    """Train a tokenizer for host ``beit``, to the end or until SIGINT or SIGTERM: ``hardpatch tokenizer``.

    Args:
        data: images, one path or several; see :func:`~hardpatch.data.sources.open_source`.
        out: folder of the run.
        image_column: column of the images in tables; None finds it.
        resume: continue the run in ``out``, which then needs nothing else.
        progress: shows steps and metrics; silent by default.
        arguments: command line of the call, for the folder's README.
        settings: settings that differ from the defaults, see
            :class:`~hardpatch.pretrain.tokenizer_settings.TokenizerSettings`.

    Raises:
        UserError: for a mistake in the settings or the data, before anything is written.
        TrainingError: if the loss becomes NaN or infinite.
    """
    required = {"data": "images to train on; demo:train is the embedded set"}
    inputs = {"data": data if data is None or isinstance(data, str) else list(data), "image_column": image_column}
    run = open_run(
        *("tokenizer", out, inputs, PRESETS, None, settings), resume=resume, required=required, values_of=_values
    )
    check(run.settings)
    with claimed(run.folder, resume=resume):
        return launch_of(run.settings, _train, run, list(arguments), progress=progress or Silent())


def _values(run: TokenizerSettings, images: int, step: int, total: int) -> tuple[float, float]:
    return tokenizer_learning_rate(step, total, run), temperature(step / total)


def _train(run: FolderRun[TokenizerSettings], arguments: list[str], *, progress: Progress) -> TokenizerResult:
    started = time.monotonic()
    folder, settings, data = run.folder, run.settings, run.inputs["data"]
    try:
        source = open_source(data, Columns(run.inputs["image_column"]))
    except UserError as error:
        raise UserError(f"--data: {error}") from None
    adapted(RGB, source, "--data")  # a tokenizer reads 8 bits; this says what is lost
    fabric = start_fabric_of(settings)
    job = TokenizerJob(settings, folder, source, fabric)
    newest = resume_point(folder)
    if newest is not None:
        job.restore(newest)
    if is_first():
        run.write("tokenizer", arguments, README)
        log_to(folder / "log.txt", arguments)
    log.info("--data: %s", summarize(source))
    signal = fit(job, progress)
    if job.step < job.total:
        return TokenizerResult(folder, job.step, job.total, signal=signal)
    if job.quality is None:  # a finished run that is resumed is evaluated again
        job.evaluate()
    job.whole_model.gather()
    return on_first(lambda: _finish(job, run, data, source, time.monotonic() - started))


def _finish(
    job: TokenizerJob, run: FolderRun[TokenizerSettings], data: Any, source: OpenedSource, seconds: float
) -> TokenizerResult:
    """Write the tokenizer, result.json and the pictures of a finished run."""
    folder, settings = run.folder, run.settings
    assert job.quality is not None
    model = job.whole_model.current.requires_grad_(False).eval()
    write_tokenizer(folder / FILE, model, settings, job.quality)
    pictures: tuple[Path, ...] = ()
    with optional_file(folder / "pictures"), logged_pictures(folder, job.step, settings.logger):
        with atomic_path(shown := folder / "pictures" / "reconstructions.png") as partial:
            reconstructions(model, source, settings.image_size, device=job.fabric.device).save(partial)
        curves = training_curves(read_metrics(folder / "metrics.jsonl"), folder / "pictures" / "curves.png")
        pictures = shown, curves
    result = write_result(
        folder,
        "tokenizer",
        run=str(folder),
        data={"train": data},
        images={"train": len(source)},
        classes=None,
        left_out=counts(source.skipped, len(job.bad_files)),
        seconds=seconds,
        steps=job.total,
        quality=job.quality.to_dict(),
    )
    return TokenizerResult(folder, job.step, job.total, job.quality, pictures, result=result)


def write_tokenizer(path: Path, tokenizer: DiscreteVAE, run: TokenizerSettings, quality: Quality) -> None:
    """Write the weights and everything that is needed to rebuild the network, completely or not at all."""
    metadata = {"hardpatch": __version__, "kind": KIND, **to_dict(run), "quality": quality.to_dict()}
    # One metadata entry: safetensors writes several in an order that changes from run to run.
    state = {name: value.cpu().contiguous() for name, value in tokenizer.state_dict().items()}
    with atomic_path(path) as partial:
        save_tensors(state, partial, {METADATA: json.dumps(metadata)})


@torch.no_grad()
def reconstructions(tokenizer: DiscreteVAE, source: Source, image_size: int, *, device: torch.device) -> Image.Image:
    """Draw some images, and below each its reconstruction from tokens."""
    chosen = Subset(source, evenly_spread(len(source), PICTURED))
    batch = next(iter(eval_batches(chosen, EvalTransform((image_size, image_size)), batch_size=PICTURED)))
    output = tokenizer(batch.images.to(device).float() / 255).images
    rows = [batch.images, (output.clamp(0, 1) * 255).round().byte().cpu()]
    lines = [np.concatenate([enlarge(i, 128) for i in row.permute(0, 2, 3, 1).numpy()], axis=1) for row in rows]
    return Image.fromarray(np.concatenate(lines, axis=0))
