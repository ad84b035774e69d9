"""The stream after the last block: our start weights against the second start of ``benchmarks/start_weights.py``."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "start_weights.py"
SHAPE: dict[str, Any] = {"image_size": (224, 224), "patch_size": 16, "width": 192, "depth": 4, "heads": 3}


@pytest.mark.parametrize("host", ["mae", "beit", "simmim", "ibot"])
def test_two_independent_starts_give_one_stream(host: str) -> None:
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    rows = runpy.run_path(str(SCRIPT))["compare"](host, SHAPE, images, 0)
    values = {name: tuple(map(float, row[:2])) for name, *row in rows}
    ours, theirs = values.pop("stream")
    assert ours == pytest.approx(theirs, rel=0.03)
    matrices = {name: pair for name, pair in values.items() if name.endswith("weight")}
    assert len(matrices) >= 9
    for name, (one, other) in matrices.items():
        assert one == pytest.approx(other, rel=0.02), name
    stream_of_mae = float(rows[-1][3])
    assert (abs(stream_of_mae / ours - 1) < 0.03) == (host == "mae")
