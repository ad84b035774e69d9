"""Features at other image sizes and of several blocks, against the encoder itself."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from hardpatch.data.augment import EvalTransform
from hardpatch.data.sources import Subset, open_source
from hardpatch.errors import UserError
from hardpatch.evaluate.embeddings import write_embeddings
from hardpatch.measure.view import View, view_of
from tests.small import small_hpm


def embedded(path: Path, view: View | None, pool: str = "mean") -> torch.Tensor:
    import pyarrow.parquet as pq

    source = Subset(open_source("demo:test"), range(6))
    write_embeddings(small_hpm().eval(), source, path, device="cpu", workers=0, view=view, pool=pool)  # type: ignore[arg-type]
    return torch.tensor(np.stack(pq.read_table(path).column("embedding").to_pylist())).float()


@pytest.mark.parametrize("pool", ["mean", "class"])
def test_blocks_are_put_one_after_the_other(tmp_path: Path, pool: str) -> None:
    model = small_hpm().eval()
    both, last = view_of(model, blocks=[-1, -2]), view_of(model, blocks=[-1])
    assert (both.blocks, last.blocks) == ((1, 2), (2,))
    plain = embedded(tmp_path / "plain.parquet", None, pool)
    assert torch.equal(embedded(tmp_path / "last.parquet", last, pool), plain)
    joined = embedded(tmp_path / "both.parquet", both, pool)
    assert joined.shape == (6, 64)
    assert torch.equal(joined[:, 32:], plain)
    assert torch.equal(joined[:, :32], embedded(tmp_path / "first.parquet", view_of(model, blocks=[1]), pool))


def test_another_size_resizes_the_positions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = small_hpm().eval()
    with caplog.at_level(logging.INFO, "hardpatch"):
        view = view_of(model, (8, 32))
    assert "--image_size 8 32: positions of 4 x 6 patches are resized to 2 x 8" in caplog.text
    source = open_source("demo:test")
    pixels = torch.stack([EvalTransform((8, 32))(source.image(k)) for k in range(6)])
    with torch.inference_mode():
        tokens = model.encode(model.normalize(pixels))
    assert tokens.shape == (6, 1 + 16, 32)
    assert torch.allclose(embedded(tmp_path / "a.parquet", view), tokens[:, 1:].mean(dim=1), atol=1e-6)
    assert view_of(model, 16) == View((16, 16))


@pytest.mark.parametrize(
    ("size", "blocks", "message"),
    [
        (30, (), "--image_size: expected multiples of the patch size 4, got 30 x 30"),
        ((32, 32, 32), (), "--image_size: expected a side, or height and width, got 32 32 32"),
        (None, (0,), "--blocks: expected numbers from 1 to 2, or -1 for the last to -2, got 0"),
        (None, (-3,), "got -3"),
    ],
)
def test_mistakes(size: int | tuple[int, ...] | None, blocks: tuple[int, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        view_of(small_hpm(), size, blocks)
