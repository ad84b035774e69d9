from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from hardpatch.data.sources import open_source
from hardpatch.errors import UserError
from hardpatch.evaluate.embeddings import write_embeddings
from tests.end_to_end.conftest import write_images
from tests.small import small_hpm


def vectors(path: Path) -> np.ndarray:
    return np.array([row["embedding"] for row in pq.read_table(path).to_pylist()])


def test_normalized_embeddings_have_length_1(tmp_path: Path) -> None:
    source = open_source(write_images(tmp_path / "images", each=2))
    model = small_hpm().eval()
    plain, normalized = tmp_path / "plain.parquet", tmp_path / "normalized.parquet"
    result = write_embeddings(model, source, plain, device="cpu", workers=0)
    assert (result.images, result.bad) == (4, [])
    write_embeddings(model, source, normalized, device="cpu", workers=0, normalize=True)
    lengths = np.linalg.norm(vectors(plain), axis=1, keepdims=True)
    np.testing.assert_allclose(vectors(normalized), vectors(plain) / lengths, rtol=1e-5)


def test_no_partial_file_remains_after_an_error(tmp_path: Path) -> None:
    source = open_source(write_images(tmp_path / "images", each=2))
    model = small_hpm().eval()
    with torch.no_grad():
        next(model.host.encoder.parameters()).fill_(torch.nan)
    with pytest.raises(UserError, match="expected finite features"):
        write_embeddings(model, source, tmp_path / "new" / "vectors.parquet", device="cpu", workers=0)
    assert list((tmp_path / "new").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="--out: cannot write"):
        write_embeddings(model, source, tmp_path / "file" / "vectors.parquet", device="cpu", workers=0)
