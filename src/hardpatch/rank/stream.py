"""One pass over images that goes on where it was stopped."""

from collections.abc import Callable

import numpy as np

from hardpatch.data.augment import EvalTransform
from hardpatch.data.bad_files import BadFiles
from hardpatch.data.batch import Batch
from hardpatch.data.datasets import EvaluationDataset
from hardpatch.data.loader import batch_loader
from hardpatch.data.order import EvaluationOrder
from hardpatch.data.sources import Source, Subset
from hardpatch.measure.features import ProgressCallback
from hardpatch.rank.parts import BATCHES, Columns, Parts

Measure = Callable[[Batch], Columns]
"""Returns the values of the images of a batch, which has some."""


def measure_all(
    source: Source,
    transform: EvalTransform,
    parts: Parts,
    measure: Measure,
    *,
    bad_files: BadFiles,
    batch_size: int,
    workers: int = 0,
    progress: ProgressCallback | None = None,
) -> None:
    """Measure those images whose part is not there yet, and write the parts.

    Args:
        source: images of any size.
        transform: makes the model's images of them.
        parts: of an earlier call, and of this one.
        measure: called for each batch.
        bad_files: told of all images that cannot be decoded, those of earlier calls included.
        batch_size: images in a batch.
        workers: processes that decode images.
        progress: called after each batch with (images done, images).

    Raises:
        UserError: from ``bad_files``, if too many images cannot be decoded.
    """
    start = min(len(parts) * BATCHES * batch_size, len(source))
    if progress is not None:
        progress(start, len(source))
    bad_files.update(parts.bad())
    rest = Subset(source, range(start, len(source)))
    loader = batch_loader(EvaluationDataset(rest, transform), EvaluationOrder(len(rest), batch_size), workers)
    rows: list[Columns] = []
    bad: list[str] = []
    for number, batch in enumerate(loader, 1):
        bad += batch.bad
        bad_files.update(batch.bad)
        if len(batch.images):
            rows.append(measure(batch._replace(indices=batch.indices + start)))
        done = min(start + number * batch_size, len(source))
        if number % BATCHES == 0 or done == len(source):
            parts.write(_joined(rows), bad)
            rows, bad = [], []
        if progress is not None:
            progress(done, len(source))


def _joined(rows: list[Columns]) -> Columns:
    """Join the rows of batches; without any, as where no image can be decoded, there are no columns."""
    return {name: np.concatenate([part[name] for part in rows]) for name in (rows[0] if rows else ())}
