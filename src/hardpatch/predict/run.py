"""Predictions of a fine-tuned network for images, written to a file or folder: ``hardpatch predict``."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from hardpatch.choices import PrecisionName
from hardpatch.data.bad_files import BadFiles, nothing_decodable
from hardpatch.data.left_out import counts
from hardpatch.data.order import evenly_spread
from hardpatch.data.reading import Reading, to_bytes
from hardpatch.data.sources import OpenedSource
from hardpatch.data.summary import open_described
from hardpatch.data.survey import adapted
from hardpatch.data.workers import resolve_workers
from hardpatch.errors import UserError
from hardpatch.figures import channels_caption
from hardpatch.files import atomic_path, reason_of
from hardpatch.interchange.finetuned import Kind
from hardpatch.measure.features import ProgressCallback
from hardpatch.paths import user_path
from hardpatch.predict.load import load_finetuned
from hardpatch.predict.names import map_names
from hardpatch.predict.task import Predictions, Task, Writer
from hardpatch.ranges import check_options
from hardpatch.train.device import use_device
from hardpatch.train.result import head


@dataclass(frozen=True)
class PredictResult:
    """Result of :func:`predict`."""

    path: Path
    kind: Kind
    images: int
    """number of images with a prediction"""
    left_out: int
    """number of images that could not be decoded"""
    pictures: Path | None = None
    """folder of the pictures"""
    values: dict[str, Any] = field(default_factory=dict, repr=False)
    """the whole result as plain values, for JSON"""


def predict(
    run: str | Path,
    images: str | Sequence[str],
    out: str | Path,
    *,
    top: int = 5,
    pictures: int = 0,
    batch_size: int = 32,
    workers: int | Literal["auto"] = "auto",
    max_bad_fraction: float = 1.0,
    device: str = "auto",
    precision: PrecisionName = "auto",
    image_column: str | None = None,
    label_column: str | None = None,
    progress: ProgressCallback | None = None,
) -> PredictResult:
    """Write what a fine-tuned network predicts for images: ``hardpatch predict``.

    Predictions are those of the evaluation of the verb that trained the network. Nothing is left behind if it fails.

    Args:
        run: folder or weights file of a run of ``finetune``, ``segment`` or ``detect``.
        images: files, folders, tables, archives, ``demo:test``.
        out: a new Parquet or CSV file (classifier), folder (segmenter), or JSON file (detector).
        top: most probable classes of each image that a classifier writes.
        pictures: number of images with a picture, evenly spread over the set, in a folder beside ``out``.
        batch_size: images per forward pass; segmenters take one at a time.
        workers: processes that decode images.
        max_bad_fraction: share of the images that may be undecodable; these are named and left out.
        device: where to compute.
        precision: of the network; ``auto`` is bf16 on a CUDA device and fp32 elsewhere, as in trainings.
        image_column: column of the images in tables; None finds it.
        label_column: column of the labels, likewise; with labels that a classifier knows, its accuracy is measured.
        progress: called after each batch with (images done, images).

    Raises:
        UserError: for a mistake in the arguments, if too many images cannot be decoded, or ``out`` cannot be written.
    """
    check_options(top=top, pictures=pictures, batch_size=batch_size, workers=workers, max_bad_fraction=max_bad_fraction)
    started, path = time.monotonic(), user_path(out, "--out")
    drawn = path.with_name(f"{path.stem}_pictures") if pictures else None
    _check_new(path, drawn)
    used_device = use_device(device)
    how: dict[str, Any] = {"batch_size": batch_size, "workers": resolve_workers(workers)}
    how["autocast"] = _autocast(precision, used_device)
    task = load_finetuned(run, device=used_device).task
    task.check_out(path)
    source = open_described(images, image_column, task.reading, label_column)
    bad_files = BadFiles(len(source), max_bad_fraction, "--max_bad_fraction", source=source)
    numbers = _write_files(task, source, path, drawn, how, bad_files, top, pictures, progress)
    values = _values(run, images, task, numbers, counts(source.skipped, len(bad_files)), time.monotonic() - started)
    values |= {"out": str(path), "pictures": drawn and str(drawn)}
    return PredictResult(path, task.kind, numbers["written"], len(bad_files), drawn, values)


def _values(
    run: str | Path,
    images: str | Sequence[str],
    task: Task,
    numbers: Mapping[str, Any],
    left_out: Mapping[str, int],
    seconds: float,
) -> dict[str, Any]:
    """Return the result as plain values; ``numbers`` are those of :func:`_write_files`."""
    values = head(
        "predict",
        run=str(run),
        data={"images": images},
        images={"images": numbers["written"]},
        classes=len(task.classes),
        left_out=left_out,
        seconds=seconds,
    )
    return values | {"kind": task.kind, **{name: value for name, value in numbers.items() if name != "written"}}


def _write_files(
    task: Task,
    source: OpenedSource,
    path: Path,
    drawn: Path | None,
    how: Mapping[str, Any],
    bad_files: BadFiles,
    top: int,
    pictures: int,
    progress: ProgressCallback | None,
) -> dict[str, Any]:
    """Predict all images, and write output and pictures, both or none.

    Returns:
        ``written``, the number of images, and what the writer counted.
    """
    reading = adapted(task.reading, source, "IMAGES")
    with _open_files(path, drawn) as partials, task.writing(partials[0], source, top) as writer:
        painter = _Painter(task, source, reading, pictures, partials[1]) if drawn else None
        written = _write(task.predictions(source, reading, **how), writer, painter, bad_files, progress)
    return {"written": written, **writer.summary()}


def _check_new(*paths: Path | None) -> None:
    """Refuse a path that exists.

    Raises:
        UserError: names it.
    """
    for path in paths:
        if path is not None and (path.exists() or path.is_symlink()):
            raise UserError(f"--out: expected a name that does not exist yet, {path} does; choose another one")


def _write(
    batches: Iterable[Predictions],
    writer: Writer,
    painter: "_Painter | None",
    bad_files: BadFiles,
    progress: ProgressCallback | None,
) -> int:
    """Write and draw predictions as they come. Returns the number of images that have one.

    Raises:
        UserError: if too many images cannot be decoded, or all.
    """
    written = 0
    bad: list[str] = []
    for predictions in batches:
        bad += predictions.bad
        bad_files.update(predictions.bad)
        writer.add(predictions)
        if painter is not None:
            painter.draw(predictions)
        written += len(predictions.indices)
        if progress is not None:
            progress(written + len(bad), bad_files.total)
    if not written:
        raise nothing_decodable(bad_files.total, bad)
    return written


def _autocast(precision: PrecisionName, device: torch.device) -> torch.dtype | None:
    """Return the half precision to compute in, None for float32."""
    if precision == "fp16" and device.type != "cuda":
        raise UserError("--precision: fp16 needs a CUDA device; use bf16 or fp32")
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" and torch.cuda.is_bf16_supported() else None
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


@contextmanager
def _open_files(*paths: Path | None) -> Iterator[list[Path]]:
    """Yield temporary paths for those that are not None, and move what is written there in the end.

    Raises:
        UserError: if the disk refuses.
    """
    wanted = [path for path in paths if path is not None]
    try:
        wanted[0].parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            yield [stack.enter_context(atomic_path(path)) for path in wanted]
    except OSError as error:
        raise UserError(f"--out: cannot write {wanted[0]}: {reason_of(error)}") from None


class _Painter:
    """Pictures of some of the images, with their predictions.

    Args:
        task: draws them.
        source: the images.
        reading: of the images.
        count: number of pictures.
        folder: of the pictures, which is created.
    """

    def __init__(self, task: Task, source: OpenedSource, reading: Reading, count: int, folder: Path) -> None:
        self.task, self.source, self.reading, self.folder = task, source, reading, folder
        self.chosen = frozenset(evenly_spread(len(source), count))
        folder.mkdir()

    def draw(self, predictions: Predictions) -> None:
        """Draw those images of a batch that get a picture."""
        for index, value in zip(predictions.indices, predictions.values, strict=True):
            if index in self.chosen:
                image = to_bytes(self.source.image(index, self.reading), self.reading)
                (name,) = map_names([self.source.name(index).rpartition("/")[2]])
                path = self.folder / f"{index:05d}-{name}"
                self.task.draw(image, value, channels_caption(self.reading.channels), path)
