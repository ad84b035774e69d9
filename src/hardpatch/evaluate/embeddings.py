"""Embeddings of images in a Parquet file, written batch by batch: memory does not grow with the number of images."""

from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F

from hardpatch.data.loader import eval_batches
from hardpatch.data.sources import Source
from hardpatch.data.workers import resolve_workers
from hardpatch.errors import UserError
from hardpatch.files import atomic_path, reason_of
from hardpatch.measure.features import Pool, ProgressCallback, extract
from hardpatch.measure.labels import eval_transform
from hardpatch.measure.view import View
from hardpatch.methods.hpm import HPM
from hardpatch.printable import printable


class EmbedResult(NamedTuple):
    """Result of :func:`write_embeddings`."""

    images: int
    """number of embedded images"""
    bad: list[str]
    """one line for each image that could not be read"""


def write_embeddings(
    model: HPM,
    source: Source,
    out: Path,
    *,
    device: torch.device | str,
    pool: Pool = "mean",
    normalize: bool = False,
    batch_size: int = 256,
    workers: int | Literal["auto"] = "auto",
    progress: ProgressCallback | None = None,
    view: View | None = None,
) -> EmbedResult:
    """Write a Parquet file with the columns ``path`` (text) and ``embedding`` (D float32 values per row).

    Args:
        model: in eval mode, on ``device``.
        source: images of any size, preprocessed as for k-NN.
        out: the file, written completely or not at all.
        device: where the model is.
        pool: mean of the patch tokens, or the class token.
        normalize: scale every vector to length 1.
        batch_size: images per forward pass.
        workers: processes that decode images.
        progress: called after each batch with (images done, images).
        view: image size and blocks; None for the size of the training, and the last block.

    Raises:
        UserError: if the file cannot be written, or the features are not finite.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    autocast = torch.bfloat16 if torch.device(device).type == "cuda" else None
    view = view or View(model.image_size)
    width = model.host.encoder.width * max(1, len(view.blocks))
    transform = eval_transform(model, source, image_size=view.image_size)
    schema = pa.schema([("path", pa.string()), ("embedding", pa.list_(pa.float32(), width))])
    written = 0
    bad: list[str] = []
    batches = eval_batches(source, transform, batch_size=batch_size, workers=resolve_workers(workers))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(out) as partial, pq.ParquetWriter(partial, schema) as file:
            for batch in batches:
                features = extract(model, [batch], device=device, pool=pool, autocast=autocast, blocks=view.blocks)
                vectors = F.normalize(features.features, dim=1) if normalize else features.features
                # file names need not be valid Unicode, Parquet strings must be
                names = [printable(source.name(i)) for i in features.indices.tolist()]
                column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.numpy().ravel()), width)
                file.write_table(pa.table([pa.array(names), column], schema=schema))
                written, bad = written + len(names), bad + features.bad
                if progress is not None:
                    progress(written + len(bad), len(source))
    except OSError as error:
        raise UserError(f"--out: cannot write {out}: {reason_of(error)}") from None
    return EmbedResult(written, bad)
