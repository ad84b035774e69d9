"""One vector for each image, written as they come: a million images need no memory for it."""

import os
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F

from hardpatch.data.loader import eval_batches
from hardpatch.data.sources import Source
from hardpatch.data.workers import resolve_workers
from hardpatch.errors import UserError
from hardpatch.measure.features import Progress, extract
from hardpatch.measure.labels import eval_transform
from hardpatch.methods.hpm import HPM


def write_embeddings(
    model: HPM,
    source: Source,
    out: Path,
    *,
    device: torch.device | str,
    pool: Literal["mean", "class"] = "mean",
    normalize: bool = False,
    batch_size: int = 256,
    workers: int | Literal["auto"] = "auto",
    progress: Progress | None = None,
) -> tuple[int, list[str]]:
    """Write a Parquet file with the columns ``path`` (text) and ``embedding`` (D float32 numbers a row).

    Args:
        model: in eval mode, on ``device``.
        source: images of any size; they are shown as k-NN shows them.
        out: the file; complete or not there.
        device: where the model is.
        pool: average of the patch tokens, or the class token.
        normalize: bring every vector to length 1.
        batch_size, workers: of the loading.
        progress: called after each batch with (images done, images).

    Returns:
        The number of vectors, and a line for each image that could not be read.

    Raises:
        UserError: if the file cannot be written, or the features are not finite.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    bfloat = torch.bfloat16 if torch.device(device).type == "cuda" else None
    width = model.host.encoder.width
    schema = pa.schema([("path", pa.string()), ("embedding", pa.list_(pa.float32(), width))])
    partial = out.with_name(f".{out.name}.partial")
    written = 0
    bad: list[str] = []
    batches = eval_batches(source, eval_transform(model), batch_size=batch_size, workers=resolve_workers(workers))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with pq.ParquetWriter(partial, schema) as file:
            for batch in batches:
                found = extract(model, [batch], device=device, pool=pool, autocast=bfloat)
                vectors = F.normalize(found.features, dim=1) if normalize else found.features
                names = [source.name(i).encode(errors="replace").decode() for i in found.indices.tolist()]
                column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.numpy().ravel()), width)
                file.write_table(pa.table([pa.array(names), column], schema=schema))
                written, bad = written + len(names), bad + found.bad
                if progress is not None:
                    progress(written + len(bad), len(source))
        os.replace(partial, out)
    except OSError as error:
        raise UserError(f"--out: cannot write {out}: {error.strerror or error}") from None
    finally:
        partial.unlink(missing_ok=True)
    return written, bad
